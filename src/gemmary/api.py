# SPDX-License-Identifier: Apache-2.0
"""gemmary.load: from a model's name to a Generator that answers.

    name ─locate─► files ─open_checkpoint─► config, vocabulary, tensors ─► engine ─► BatchedGenerator
                                                     └─► Tokenizer ──────────────────────┘

Which engine and which backend are settled before anything is read, because Keras takes its backend when it is imported.
"""

import os
import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from gemmary.base.errors import FileError, InputError, MissingExtraError
from gemmary.base.memory import keep_freed_memory

if TYPE_CHECKING:
    from gemmary.base.config import GemmaConfig
    from gemmary.formats.checkpoint import Checkpoint
    from gemmary.formats.sentencepiece import Vocabulary
    from gemmary.generate.batched import BatchedGenerator
    from gemmary.generate.draft import Drafter
    from gemmary.generate.generator import Engine
    from gemmary.text.tokenizer import Tokenizer

EngineName = Literal["auto", "keras", "native"]
Backend = Literal["jax", "torch", "tensorflow"]
Dtype = Literal["float32", "bfloat16"]

DEFAULT_LENGTH = 8192  # positions a slot holds unless more is asked for
CHUNK_LENGTH = 512  # tokens of a prompt that run at once
MOST_SLOTS = 8  # unless more are asked for
_ENGINES = {  # both are made with the same arguments; a module that is not there is an engine that is not installed
    "keras": ("gemmary.generate.keras_engine", "KerasEngine"),
    "native": ("gemmary.generate.native_engine", "NativeEngine"),
}
_LIBRARIES: dict[Backend, str] = {
    "jax": "JAX",
    "torch": "PyTorch",
    "tensorflow": "TensorFlow",
}  # in order of preference


def load(
    name: str | None = None,
    *,
    engine: EngineName = "auto",
    backend: Backend | None = None,
    dtype: Dtype = "float32",
    max_length: int | None = None,
    num_slots: int | None = None,
    draft: str = "lookup",
    adapter: str | None = None,
) -> "BatchedGenerator":
    """A Generator for a model: a path, a name of the family, a hub's address, or nothing for the embedded default.

    `engine` and `backend` are chosen as `runtime` says. `dtype` is the precision of weights, activations and cache.
    `max_length` is the most tokens of a prompt and its reply together; by default the model's own context, but at most
    8,192, since the cache is allocated whole. `num_slots` requests run at once; by default so many, from 1 to 8, that
    their caches take a quarter of the memory of the weights at most. `GemmaConfig.cache_bytes` says how much that is.

    `draft` is how the next tokens are guessed, which makes replies faster and never changes them: "lookup" in what was
    said before, "none", or a smaller model of the same vocabulary, named as this one. The Keras engine judges none.

    `adapter` is the folder or the hub's address of a LoRA or DoRA adapter of this model, ours or PEFT's, or "chat",
    which teaches the embedded default to converse. It is merged while the model is loaded: the matrices that it adapts
    are read as float32, all others as without it.

    Raises UnknownModelError, FileError and CheckpointError for a model that cannot be found or read, MissingExtraError
    for an engine or backend that is not installed, InputError for settings that cannot be used.

    >>> load("gemma-2-2c")
    Traceback (most recent call last):
    gemmary.base.errors.UnknownModelError: expected a path or the name of a model, got 'gemma-2-2c': did you mean ...
    """
    from gemmary.formats.adapter import merged
    from gemmary.formats.checkpoint import open_checkpoint
    from gemmary.formats.locate import locate, locate_adapter
    from gemmary.formats.peft_folder import read_adapter
    from gemmary.generate.batched import BatchedGenerator
    from gemmary.text.tokenizer import Tokenizer

    if dtype not in get_args(Dtype):
        raise InputError(f"expected a dtype of {', '.join(get_args(Dtype))}, got {dtype!r}: use one of them")
    if num_slots is not None and num_slots < 1:
        raise InputError(f"expected num_slots >= 1, got {num_slots}: use 1 for one request at a time")
    chosen, path = runtime(engine, backend), locate(name)
    checkpoint = open_checkpoint(path)
    if adapter is not None:
        checkpoint = merged(checkpoint, read_adapter(locate_adapter(adapter)))
    tokenizer = Tokenizer(_present(checkpoint.vocabulary, path))
    length = _length(checkpoint.config.max_length, max_length)
    slots = num_slots or _affordable_slots(checkpoint.config, length)
    made = _make_engine(chosen, checkpoint, num_slots=slots, max_length=length, dtype=dtype)
    return BatchedGenerator(made, tokenizer, _drafter(draft, chosen, made, tokenizer, dtype=dtype))


def load_tokenizer(name: str | None = None) -> "Tokenizer":
    """The tokenizer of a model named as for `load`, or that of a `tokenizer.model` or `tokenizer.json` file.

    Raises UnknownModelError and FileError for what cannot be found or read or has no vocabulary.

    >>> load_tokenizer("gemma-2-2c")
    Traceback (most recent call last):
    gemmary.base.errors.UnknownModelError: expected a path or the name of a model, got 'gemma-2-2c': did you mean ...
    """
    from gemmary.formats.checkpoint import open_checkpoint
    from gemmary.formats.locate import locate
    from gemmary.formats.sentencepiece import read_sentencepiece
    from gemmary.formats.tokenizer_json import read_tokenizer_json
    from gemmary.text.tokenizer import Tokenizer

    path = locate(name)
    if path.name.endswith("tokenizer.json"):
        return Tokenizer(read_tokenizer_json(path))
    if path.suffix == ".model":
        return Tokenizer(read_sentencepiece(path))
    return Tokenizer(_present(open_checkpoint(path).vocabulary, path))


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """What computes: an engine, and for Keras its backend.

    >>> Runtime(engine="native").backend is None
    True
    """

    engine: Literal["keras", "native"]
    backend: Backend | None = None


def runtime(engine: EngineName = "auto", backend: Backend | None = None) -> Runtime:
    """Settle which engine and backend run; a backend of Keras is from then on that of the whole process.

    "auto" is the native engine where it is installed and no backend is asked for, and Keras otherwise. Without
    `backend` Keras runs on the one it already runs on, else on that of KERAS_BACKEND, else on the first installed of
    JAX, PyTorch and TensorFlow.

    Raises MissingExtraError for what is not installed, InputError for an unknown name and for another backend than the
    one Keras already runs on.

    >>> runtime("onnx")
    Traceback (most recent call last):
    gemmary.base.errors.InputError: expected an engine of auto, keras, native, got 'onnx': use one of them
    """
    if engine not in get_args(EngineName):
        raise InputError(f"expected an engine of {', '.join(get_args(EngineName))}, got {engine!r}: use one of them")
    has_native = find_spec(_ENGINES["native"][0]) is not None
    if engine == "native" and not has_native:
        raise MissingExtraError(
            "expected the native engine, got a package without it: use engine 'keras', or a build that has it"
        )
    if engine == "native" and backend is not None:
        raise InputError(f"expected no backend with the native engine, got {backend!r}: leave one of the two out")
    if engine == "native" or (engine == "auto" and has_native and backend is None):
        return Runtime(engine="native")
    return Runtime(engine="keras", backend=_keras_backend(backend))


def _keras_backend(wanted: str | None) -> Backend:
    """The backend of Keras, set in the environment for when Keras is imported."""
    if "keras" in sys.modules:
        running = str(sys.modules["keras"].backend.backend())
        if wanted not in (None, running):
            raise InputError(
                f"expected the backend {running}, which Keras already runs on, got {wanted!r}: "
                f"set KERAS_BACKEND={wanted} before Keras is imported, or start a new process"
            )
        return _known(running)
    named = wanted or os.environ.get("KERAS_BACKEND")
    backend = _known(named) if named else next((each for each in _LIBRARIES if find_spec(each)), None)
    if backend is None or find_spec("keras") is None:
        raise MissingExtraError.of("the Keras engine", "Keras 3 and a backend", backend or "jax")
    if find_spec(backend) is None:
        raise MissingExtraError.of(f"the backend {backend}", _LIBRARIES[backend], backend)
    os.environ["KERAS_BACKEND"] = backend
    if backend == "torch":  # large arrays in huge pages: fetching small ones takes a tenth of a training step
        os.environ["THP_MEM_ALLOC_ENABLE"] = os.environ.get("THP_MEM_ALLOC_ENABLE") or "1"
        keep_freed_memory()
    return backend


def _known(name: str) -> Backend:
    for backend in _LIBRARIES:
        if name == backend:
            return backend
    raise InputError(f"expected a Keras backend of {', '.join(_LIBRARIES)}, got {name!r}: use one of them")


def _present(vocabulary: "Vocabulary | None", path: Path) -> "Vocabulary":
    if vocabulary is None:
        raise FileError(
            f"expected a vocabulary with the model, got none in {path}: "
            "put its tokenizer.model or tokenizer.json there, or convert it again with one"
        )
    return vocabulary


def _length(context: int, wanted: int | None) -> int:
    if wanted is None:
        return min(context, DEFAULT_LENGTH)
    if not 2 <= wanted <= context:
        raise InputError(f"expected max_length in 2..{context}, the model's context, got {wanted}: choose one of these")
    return wanted


def _affordable_slots(config: "GemmaConfig", length: int) -> int:
    one = config.cache_bytes(length, chunk=min(CHUNK_LENGTH, length), itemsize=1)
    return max(1, min(MOST_SLOTS, config.num_params // 4 // one))


def _make_engine(
    chosen: Runtime, checkpoint: "Checkpoint", *, num_slots: int, max_length: int, dtype: Dtype
) -> "Engine":
    module, name = _ENGINES[chosen.engine]
    make = getattr(import_module(module), name)
    chunk = min(CHUNK_LENGTH, max_length)
    engine: Engine = make(checkpoint, num_slots=num_slots, max_length=max_length, chunk_length=chunk, dtype=dtype)
    return engine


def _drafter(
    draft: str, chosen: Runtime, engine: "Engine", tokenizer: "Tokenizer", *, dtype: Dtype
) -> "Drafter | None":
    """What guesses for an engine; a model gets as many slots, and the length it has in common."""
    from gemmary.formats.checkpoint import open_checkpoint
    from gemmary.formats.locate import locate
    from gemmary.generate.draft import DraftModel, Lookup
    from gemmary.text.tokenizer import Tokenizer

    if draft in ("none", "lookup"):
        return Lookup() if draft == "lookup" else None
    if engine.num_drafts == 0:
        raise InputError(
            f"expected draft 'none' or 'lookup' with an engine that judges no drafts, got {draft!r}: use 'native'"
        )
    path = locate(draft)
    checkpoint = open_checkpoint(path)
    its_tokenizer = Tokenizer(_present(checkpoint.vocabulary, path))
    length = min(checkpoint.config.max_length, engine.max_length)
    made = _make_engine(chosen, checkpoint, num_slots=engine.num_slots, max_length=length, dtype=dtype)
    return DraftModel(made, its_tokenizer, target=tokenizer)
