# SPDX-License-Identifier: Apache-2.0
"""gemma_pytorch checkpoints against torch itself; and pickles that would do harm."""

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gemmary.base.config import PRESETS
from gemmary.base.errors import CheckpointError, FileError, InputError
from gemmary.formats.checkpoint import Checkpoint, open_checkpoint, write_checkpoint
from gemmary.formats.content import unbind
from gemmary.formats.tensors import weights
from gemmary.formats.torch_file import _config, _name

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def state_of(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """gemma_pytorch's state: queries, keys and values in one tensor."""
    entries = unbind(checkpoint.config, checkpoint.tensors, _name)
    return {name: torch.from_numpy(entry.read().copy()) for name, entry in entries.items()}


def with_our_config(path: Path, state: dict[str, Any], like: Path) -> None:
    """Save with torch what gemma_pytorch would save, and the configuration that our file has."""
    content = torch.load(like, weights_only=True)
    torch.save({"model_state_dict": state, "gemmary_config": content["gemmary_config"]}, path)


@pytest.fixture
def ours(make_tiny: Callable[..., Checkpoint], tmp_path: Path) -> Path:
    write_checkpoint(make_tiny("gemma3"), tmp_path / "ours.ckpt", format="torch")
    return tmp_path / "ours.ckpt"


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_loads_what_we_write_without_running_code(
    dtype: str, make_tiny: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    tiny = make_tiny("gemma2", dtype=dtype)
    write_checkpoint(tiny, tmp_path / "m.ckpt", format="torch", dtype=dtype)
    state = torch.load(tmp_path / "m.ckpt", weights_only=True, mmap=True)["model_state_dict"]
    qkv = state["model.layers.1.self_attn.qkv_proj.weight"]
    assert (qkv.dtype, tuple(qkv.shape)) == (DTYPES[dtype], (128 + 64 + 64, 64))
    parts = [tiny.tensors[f"layers.1.attention.{part}"]().astype(np.float32) for part in ("query", "key", "value")]
    expected = np.concatenate([part.reshape(-1, 64) for part in parts])
    np.testing.assert_array_equal(qkv.float().numpy(), expected)
    assert tuple(state["embedder.weight"].shape) == (512, 64)
    assert "model.layers.0.pre_feedforward_layernorm.weight" in state


@pytest.mark.parametrize("dtype", DTYPES)
def test_we_read_what_torch_saves(dtype: str, tiny: Checkpoint, tmp_path: Path) -> None:
    write_checkpoint(tiny, tmp_path / "ours.ckpt", format="torch")
    state: dict[str, Any] = {name: tensor.to(DTYPES[dtype]) for name, tensor in state_of(tiny).items()}
    state["embedder.weight"] = torch.nn.Parameter(state["embedder.weight"])
    state |= {"freqs_cis": torch.ones(4, 2, dtype=torch.complex64), "sampler.position": torch.arange(3)}
    with_our_config(tmp_path / "theirs.ckpt", state, tmp_path / "ours.ckpt")
    back = open_checkpoint(tmp_path / "theirs.ckpt")
    assert back.config == tiny.config and back.vocabulary is not None
    for path, _, _ in weights(tiny.config):
        array = back.tensors[path]()
        assert array.dtype == dtype
        np.testing.assert_array_equal(array, tiny.tensors[path]().astype(dtype), err_msg=path)


def test_tensors_that_share_a_storage_are_read_at_their_places(
    make_tiny: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    tiny = make_tiny("gemma1")
    write_checkpoint(tiny, tmp_path / "ours.ckpt", format="torch")
    state = state_of(tiny)
    flat = torch.cat([tensor.flatten() for tensor in state.values()])
    parts = torch.split(flat, [tensor.numel() for tensor in state.values()])
    shared = {name: part.view(tensor.shape) for (name, tensor), part in zip(state.items(), parts, strict=True)}
    with_our_config(tmp_path / "shared.ckpt", shared, tmp_path / "ours.ckpt")
    assert len(zipfile.ZipFile(tmp_path / "shared.ckpt").namelist()) < 10
    back = open_checkpoint(tmp_path / "shared.ckpt")
    for path, read in tiny.tensors.items():
        np.testing.assert_array_equal(back.tensors[path](), read(), err_msg=path)


def test_a_published_gemma_is_known_by_its_shapes() -> None:
    from gemmary.formats.content import Entry

    for name in ("gemma-2b", "gemma-2-2b", "gemma-3-1b-pt"):
        config = PRESETS[name]
        nothing = {path: (lambda: np.zeros(0)) for path, _, _ in weights(config)}
        entries = {
            key: Entry(shape=entry.shape, read=entry.read) for key, entry in unbind(config, nothing, _name).items()
        }
        assert _config(None, entries, "m.ckpt") == config


def test_shapes_of_no_published_gemma_are_refused(make_tiny: Callable[..., Checkpoint], tmp_path: Path) -> None:
    torch.save({"model_state_dict": state_of(make_tiny("gemma1"))}, tmp_path / "m.ckpt")
    with pytest.raises(CheckpointError, match=r"expected the tensors of a published Gemma in m\.ckpt"):
        open_checkpoint(tmp_path / "m.ckpt")


def test_what_gemma_pytorch_has_not_is_not_written(make_tiny: Callable[..., Checkpoint], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected norm_plus_one, got False"):
        write_checkpoint(make_tiny("gemma1", norm_plus_one=False), tmp_path / "m.ckpt", format="torch")
    assert not list(tmp_path.iterdir())


class Runs:
    """An object whose pickle calls something when it is loaded."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def harm(folder: Path) -> dict[str, Any]:
    import os

    mark = str(folder / "harm-was-done")
    return {
        "os.mkdir": Runs(os.mkdir, mark),
        "eval": Runs(eval, f"__import__('os').mkdir({mark!r})"),
        "exec": Runs(exec, f"import os; os.mkdir({mark!r})"),
        "getattr": Runs(getattr, {}, "keys"),
        "torch.load": Runs(torch.load, mark),
        "bytearray": Runs(bytearray, 1 << 40),
    }


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("what", ["os.mkdir", "eval", "exec", "getattr", "torch.load", "bytearray"])
def test_no_code_in_a_pickle_runs(what: str, protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "m.ckpt"
    content = {"model_state_dict": {"embedder.weight": harm(tmp_path)[what]}}
    program = pickle.dumps(content, protocol=protocol)
    for raw in (program, zipped({"m/data.pkl": program})):
        path.write_bytes(raw)
        with pytest.raises(FileError) as caught:
            open_checkpoint(path)
        assert "\n" not in str(caught.value)
        assert [each.name for each in tmp_path.iterdir()] == ["m.ckpt"]


def test_a_use_of_code_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.ckpt"
    torch.save({"model_state_dict": {"a": harm(tmp_path)["os.mkdir"]}}, path)
    with pytest.raises(FileError, match=r"got a use of posix\.mkdir: it could run code; do not trust this file"):
        open_checkpoint(path)


def test_an_old_pickle_says_how_to_save_it_again(tmp_path: Path) -> None:
    torch.save({"model_state_dict": {}}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    with pytest.raises(FileError, match=r"an older pickle is not read, as it may run code; save it again with torch"):
        open_checkpoint(tmp_path / "old.ckpt")


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


EMPTY = b"\x80\x02}."
HOSTILE_PICKLES = {
    "no end": b"\x80\x02}",
    "nothing on the stack": b"\x80\x02.",
    "a list": b"\x80\x02].",
    "a number": b"\x80\x02K\x01.",
    "no state": EMPTY,
    "a mark without an end": b"\x80\x02(.",
    "items without a mark": b"\x80\x02}u.",
    "an odd number of items": b"\x80\x02}(K\x01u.",
    "a key that is a list": b"\x80\x02}(]K\x01u.",
    "a memo that is not there": b"\x80\x02h\x05.",
    "a call of a number": b"\x80\x02K\x01)R.",
    "a call of no tuple": b"\x80\x02ccollections\nOrderedDict\nK\x01R.",
    "a storage of a number": b"\x80\x02K\x01Q.",
    "a string of 2 GiB": b"\x80\x02X\xff\xff\xff\x7fabc.",
    "a number of 2 GiB": b"\x80\x02\x8b\xff\xff\xff\x7fabc.",
    "an extension": b"\x80\x02\x82\x01.",
    "a frame of 2^60 bytes": b"\x80\x04\x95" + (2**60).to_bytes(8, "little") + b"}.",
    "an unknown opcode": b"\x80\x02\xff.",
    "a tensor of nothing": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
    "a tensor of numbers": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x01K\x01K\x01tR.",
    "a parameter of nothing": b"\x80\x02ctorch._utils\n_rebuild_parameter\n)R.",
    "a dictionary with itself inside": b"\x80\x02}q\x00X\x10\x00\x00\x00model_state_dicth\x00s.",
    "a hundred thousand marks": b"\x80\x02" + b"(" * 100_000 + b".",
    "nested lists": b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",
    "nested tuples as a key": b"\x80\x02}" + b")" + b"\x85" * 100_000 + b"K\x01s.",
    "nothing": b"",
}


@pytest.mark.parametrize("what", HOSTILE_PICKLES)
def test_a_hostile_pickle_is_refused(what: str, tmp_path: Path) -> None:
    path = tmp_path / "m.ckpt"
    path.write_bytes(zipped({"m/data.pkl": HOSTILE_PICKLES[what]}))
    with pytest.raises(FileError) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (zipped({"m/data.pkl": EMPTY * 99}, zipfile.ZIP_DEFLATED), "expected files stored plainly"),
        (zipped({"readme.txt": b"hello"}), "expected torch's data.pkl"),
        (zipped({}), "expected torch's data.pkl"),
        (b"PK\x03\x04" + bytes(100), "expected torch's zip format"),
    ],
)
def test_a_hostile_zip_is_refused(content: bytes, error: str, tmp_path: Path) -> None:
    path = tmp_path / "m.ckpt"
    path.write_bytes(content)
    with pytest.raises(FileError, match=error):
        open_checkpoint(path)


def test_a_large_pickle_is_refused_by_its_length(tmp_path: Path) -> None:
    path = tmp_path / "m.ckpt"
    path.write_bytes(zipped({"m/data.pkl": bytes((1 << 24) + 1)}))
    with pytest.raises(FileError, match=r"expected a data\.pkl of at most 16777216 bytes"):
        open_checkpoint(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")  # zipfile says so when the test writes it
def test_a_file_that_is_in_the_zip_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        for _ in range(2):
            archive.writestr("m/data.pkl", EMPTY)
    with pytest.raises(CheckpointError, match=r"expected every file once in m\.ckpt, got m/data\.pkl twice"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda tensor: tensor.T, "laid out row by row"),
        (lambda tensor: tensor[:, ::2], "laid out row by row"),
        (lambda tensor: tensor[:1].expand(tensor.shape), "laid out row by row"),
        (lambda tensor: tensor.double(), "expected float32, float16 or bfloat16 in m.ckpt, got torch.DoubleStorage"),
        (lambda tensor: tensor[:-1], r"of shape \(512, 64\), got \(511, 64\)"),
        (lambda tensor: tensor.flatten(), r"of shape \(512, 64\), got \(32768,\)"),
        (lambda tensor: torch.tensor(1.0), "laid out row by row"),
    ],
)
def test_a_tensor_of_another_form_is_refused(
    change: Callable[[torch.Tensor], torch.Tensor],
    error: str,
    ours: Path,
    make_tiny: Callable[..., Checkpoint],
    tmp_path: Path,
) -> None:
    state = state_of(make_tiny("gemma3"))
    state["embedder.weight"] = change(state["embedder.weight"])
    with_our_config(tmp_path / "m.ckpt", state, ours)
    with pytest.raises(FileError, match=error):
        open_checkpoint(tmp_path / "m.ckpt")


def test_missing_unknown_and_infinite_tensors_are_named(
    ours: Path, make_tiny: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    state, path = state_of(make_tiny("gemma3")), tmp_path / "m.ckpt"
    norm = state.pop("model.norm.weight")
    with_our_config(path, state, ours)
    with pytest.raises(CheckpointError, match=r"expected the tensor model\.norm\.weight"):
        open_checkpoint(path)
    with_our_config(path, state | {"model.norm.weight": norm, "extra": norm}, ours)
    with pytest.raises(CheckpointError, match="expected no other tensors than a Gemma's, got extra"):
        open_checkpoint(path)
    with_our_config(path, state | {"model.norm.weight": norm.fill_(torch.inf)}, ours)
    with pytest.raises(CheckpointError, match=r"expected finite values in model\.norm\.weight"):
        open_checkpoint(path).tensors["final_norm"]()


def test_damaged_files_are_refused_in_one_line(
    make_tiny: Callable[..., Checkpoint], refused: Callable[..., int], tmp_path: Path
) -> None:
    path = tmp_path / "m.ckpt"
    write_checkpoint(make_tiny("gemma2", num_layers=2), path, format="torch", dtype="float16")
    (tmp_path / "tokenizer.model").unlink()
    assert refused(path, head=4000, flips=200, cuts=30) > 80


def test_a_damaged_directory_of_the_zip_is_refused_in_one_line(
    make_tiny: Callable[..., Checkpoint], refused: Callable[..., int], tmp_path: Path
) -> None:
    """The same with the end of the file, where the zip's directory is, put before it as far as flips go."""
    path = tmp_path / "m.ckpt"
    content = {"model_state_dict": {"a": torch.zeros(2)}, "gemmary_config": {}}
    torch.save(content, path)
    assert refused(path, head=path.stat().st_size, flips=700) > 500
