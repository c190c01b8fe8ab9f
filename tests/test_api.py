# SPDX-License-Identifier: Apache-2.0
"""gemmary.load: what is chosen when nothing is said, what is refused in one line, and what the engine is given."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import gemmary
from gemmary import api
from gemmary.api import Runtime, load, runtime
from gemmary.base.config import GemmaConfig
from gemmary.base.errors import CheckpointError, FileError, InputError, MissingExtraError
from gemmary.formats.adapter import Adapter
from gemmary.formats.checkpoint import Checkpoint, open_checkpoint, write_checkpoint
from gemmary.formats.peft_folder import write_adapter
from gemmary.generate.generator import Chunk
from gemmary.generate.request import Request
from gemmary.generate.scripted import byte_tokenizer

CONFIG = GemmaConfig(num_layers=1, model_dim=8, num_heads=1, num_kv_heads=1, mlp_dim=8, vocab_size=300, max_length=9000)
NATIVE = "gemmary.generate.native_engine"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The modules that can be found; nothing is imported yet and no backend is named."""
    names: set[str] = set()
    monkeypatch.setattr(api, "find_spec", lambda name: ModuleSpec(name, None) if name in names else None)
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    monkeypatch.setenv("KERAS_BACKEND", "")
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "")
    return names


class Echo:
    """An engine whose next token is the last one; it keeps what it was made with."""

    made: list[dict[str, object]] = []  # noqa: RUF012 - emptied by the fixture
    num_drafts = 0

    def __init__(self, checkpoint: Checkpoint, **settings: int | str) -> None:
        self.config = checkpoint.config
        self.made.append(settings)
        self.num_slots, self.max_length = settings["num_slots"], settings["max_length"]
        self.chunk_length = settings["chunk_length"]

    def logits(self, chunks: Sequence[Chunk]) -> np.ndarray:
        ids = [token for chunk in chunks for token in chunk.ids[len(chunk.ids) - chunk.num_logits :]]
        return np.eye(300, dtype=np.float32)[ids]

    candidates = logits

    def keep(self, slot: int, length: int) -> int:
        return length


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, installed: set[str], tmp_path: Path) -> str:
    """The path of a model that the engine above runs."""
    installed |= {"keras", "jax"}
    module = ModuleType("gemmary.generate.keras_engine")
    module.__dict__["KerasEngine"] = Echo
    monkeypatch.setitem(sys.modules, module.__name__, module)
    checkpoint = Checkpoint(config=CONFIG, tensors={}, vocabulary=byte_tokenizer().vocabulary)
    monkeypatch.setattr("gemmary.formats.checkpoint.open_checkpoint", lambda path: checkpoint)
    Echo.made.clear()
    (tmp_path / "model").touch()
    return str(tmp_path / "model")


def test_the_backend_is_the_one_asked_for_then_keras_backend_then_the_first_installed(
    installed: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed |= {"keras", "torch", "tensorflow"}
    assert runtime() == Runtime(engine="keras", backend="torch")
    assert runtime(backend="tensorflow").backend == "tensorflow"
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    assert runtime().backend == "tensorflow"
    assert runtime(backend="torch").backend == "torch"


def test_the_choice_is_there_when_keras_is_imported(installed: set[str]) -> None:
    installed |= {"keras", "jax"}
    runtime()
    assert api.os.environ["KERAS_BACKEND"] == "jax"


@pytest.mark.parametrize(("chosen", "found"), [("", "1"), ("0", "0")])
def test_pytorch_takes_huge_pages_unless_told_otherwise(
    installed: set[str], monkeypatch: pytest.MonkeyPatch, chosen: str, found: str
) -> None:
    installed |= {"keras", "torch"}
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", chosen)
    runtime()
    assert api.os.environ["THP_MEM_ALLOC_ENABLE"] == found


def test_what_is_not_installed_is_named_with_the_command_that_installs_it(installed: set[str]) -> None:
    with pytest.raises(MissingExtraError) as caught:
        runtime()
    assert str(caught.value) == "the Keras engine needs Keras 3 and a backend: pip install 'gemmary[jax]'"
    installed |= {"keras", "jax"}
    with pytest.raises(MissingExtraError) as caught:
        runtime(backend="torch")
    assert str(caught.value) == "the backend torch needs PyTorch: pip install 'gemmary[torch]'"


def test_a_running_keras_keeps_its_backend(installed: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    running = SimpleNamespace(backend=SimpleNamespace(backend=lambda: "torch"))
    monkeypatch.setitem(sys.modules, "keras", running)
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    assert runtime().backend == "torch"
    with pytest.raises(InputError, match="expected the backend torch, which Keras already runs on, got 'jax': set"):
        runtime(backend="jax")


def test_a_backend_of_keras_that_is_not_ours_is_refused(installed: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    installed |= {"keras", "jax"}
    monkeypatch.setenv("KERAS_BACKEND", "openvino")
    with pytest.raises(InputError, match="expected a Keras backend of jax, torch, tensorflow, got 'openvino'"):
        runtime()


def test_auto_is_native_where_it_exists_and_no_backend_is_asked_for(installed: set[str]) -> None:
    installed |= {"keras", "jax"}
    with pytest.raises(MissingExtraError, match="expected the native engine"):
        runtime("native")
    installed.add(NATIVE)
    assert runtime() == runtime("native") == Runtime(engine="native")
    assert runtime(backend="jax") == runtime("keras") == Runtime(engine="keras", backend="jax")
    with pytest.raises(InputError, match="expected no backend with the native engine, got 'jax'"):
        runtime("native", "jax")


def test_a_model_answers_through_its_engine_and_tokenizer(model: str) -> None:
    [reply] = load(model).complete([Request("hi", max_tokens=3)])
    assert reply.text == "iii"


def test_who_guesses_is_chosen_and_changes_no_reply(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Echo, "num_drafts", 7)
    request = Request("hi", max_tokens=20)
    replies = {
        draft: load(model, draft=draft, num_slots=2).complete([request])[0] for draft in ("none", "lookup", model)
    }
    assert {reply.text for reply in replies.values()} == {"i" * 20}
    assert replies["none"].usage.drafted_tokens == 0
    assert all(replies[draft].usage.accepted_tokens > 6 for draft in ("lookup", model))
    assert [(made["num_slots"], made["max_length"]) for made in Echo.made] == [(2, 8192)] * 4


def test_the_default_room_is_the_context_up_to_8192_and_chunks_fit_in_it(model: str) -> None:
    load(model)
    load(model, max_length=9000, num_slots=1, dtype="bfloat16")
    load(model, max_length=100)
    lengths = [(made["max_length"], made["chunk_length"]) for made in Echo.made]
    assert lengths == [(8192, 512), (9000, 512), (100, 100)]
    assert [(made["num_slots"], made["dtype"]) for made in Echo.made][1] == (1, "bfloat16")


@pytest.mark.parametrize(("name", "slots"), [("gemma-3-270m", 3), ("gemma-2b", 8), ("gemma-7b", 1)])
def test_as_many_slots_as_a_quarter_of_the_weights_pays_for(
    name: str, slots: int, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = gemmary.PRESETS[name]
    checkpoint = Checkpoint(config=config, tensors={}, vocabulary=byte_tokenizer().vocabulary)
    monkeypatch.setattr("gemmary.formats.checkpoint.open_checkpoint", lambda path: checkpoint)
    load(model)
    assert Echo.made[-1]["num_slots"] == slots
    cache = config.cache_bytes(8192, chunk=512, slots=slots)
    assert slots == 1 or cache <= 4 * config.num_params / 4


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"max_length": 9001}, r"expected max_length in 2..9000, the model's context, got 9001: choose one of these"),
        ({"max_length": 1}, r"expected max_length in 2..9000"),
        ({"num_slots": 0}, "expected num_slots >= 1, got 0"),
        ({"dtype": "float16"}, "expected a dtype of float32, bfloat16, got 'float16'"),
        ({"engine": "onnx"}, "expected an engine of auto, keras, native, got 'onnx'"),
        ({"draft": "a-model"}, "expected draft 'none' or 'lookup' with an engine that judges no drafts, got 'a-model'"),
        ({"backend": "mxnet"}, "expected a Keras backend of jax, torch, tensorflow, got 'mxnet'"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings: dict[str, object], line: str, model: str) -> None:
    with pytest.raises(InputError, match=line):
        load(model, **settings)


@pytest.mark.parametrize("is_dora", [False, True])
def test_both_engines_compute_a_model_with_its_adapter(
    is_dora: bool, golden: Path, random_adapter: Callable[..., Adapter], tmp_path: Path
) -> None:
    base, file, folder = open_checkpoint(golden / "model"), tmp_path / "m.gguf", tmp_path / "adapter"
    write_checkpoint(base, file, format="gguf", dtype="q8_0")  # what is not adapted stays in its blocks
    write_adapter(random_adapter(base, is_dora=is_dora), folder)
    ids = [2, *np.random.default_rng(7).integers(6, 512, 60).tolist()]

    def scores(engine: str, adapter: str | None) -> np.ndarray:
        model = load(str(file), engine=engine, adapter=adapter, max_length=128, num_slots=1)  # type: ignore[arg-type]
        return model.score([ids])[0].log_probs

    keras, native, plain = scores("keras", str(folder)), scores("native", str(folder)), scores("keras", None)
    assert abs(keras - native).mean() < 0.05  # what int8 costs
    assert abs(keras - plain).mean() > 0.4  # what the adapter changes


def test_an_adapter_of_another_model_is_refused(
    golden: Path, random_checkpoint: Callable[..., Checkpoint], random_adapter: Callable[..., Adapter], tmp_path: Path
) -> None:
    other = random_checkpoint(open_checkpoint(golden / "model").config)
    write_adapter(random_adapter(other), tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="the adapter is for another model, give the one it is for"):
        load(str(golden / "model"), engine="native", adapter=str(tmp_path / "adapter"))


def test_a_checkpoint_without_vocabulary_is_refused(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = Checkpoint(config=CONFIG, tensors={}, vocabulary=None)
    monkeypatch.setattr("gemmary.formats.checkpoint.open_checkpoint", lambda path: bare)
    with pytest.raises(FileError, match="expected a vocabulary with the model, got none in"):
        load(model)
    with pytest.raises(FileError, match="expected a vocabulary with the model, got none in"):
        gemmary.load_tokenizer(model)


def test_the_package_imports_nothing_until_a_name_is_used() -> None:
    code = "import sys, gemmary; print([name for name in sys.modules if name.startswith(('gemmary.', 'numpy'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_names_are_those_of_all_and_no_others() -> None:
    names = [name for found in gemmary._NAMES_IN.values() for name in found]
    assert sorted([*names, "__version__"]) == gemmary.__all__
    assert set(gemmary.__all__) <= set(dir(gemmary))
    with pytest.raises(AttributeError, match="module 'gemmary' has no attribute 'Gemma4'"):
        gemmary.Gemma4  # noqa: B018 - asking for it is the test
