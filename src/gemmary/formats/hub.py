# SPDX-License-Identifier: Apache-2.0
"""Downloads from Hugging Face and Kaggle, through their own clients, which keep the files in their own caches.

Endpoints, proxies, tokens and cache folders are the clients' own settings (HF_ENDPOINT, HF_TOKEN, HF_HOME,
KAGGLE_API_ENVIRONMENT, KAGGLE_USERNAME, KAGGLEHUB_CACHE and so on). What they raise becomes one line of ours.
"""

import glob
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path, PurePosixPath

from gemmary.base.errors import FileError, GatedError, MissingExtraError, UnknownModelError

_CONFIGS = ("config.json", "tokenizer.model", "tokenizer.json")
_FOLDER = (  # what folders of Hugging Face, presets of KerasHub and adapters hold: no second copy in another format
    *_CONFIGS,
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "model.weights.*",
    "model_*.weights.h5",
    "metadata.json",
    "assets/tokenizer/vocabulary.spm",
    "adapter_config.json",
    "adapter_model.safetensors",
)
_ROWS = ("*.parquet", *(f"*.{end}{packed}" for end in ("jsonl", "json", "txt") for packed in ("", ".gz")))
_WORD = re.compile(r"[\w.-]*\w[\w.-]*")


def from_hugging_face(address: str) -> Path:
    """The local copy of `owner/name` (a folder) or `owner/name/file`; only the files that are read are downloaded.

    Raises UnknownModelError for an address that leads nowhere, GatedError for terms that are not accepted, FileError
    when the download fails, MissingExtraError without huggingface_hub.

    >>> from_hugging_face("gemma-2b")
    Traceback (most recent call last):
    gemmary.base.errors.UnknownModelError: expected hf://owner/name or hf://owner/name/file, got 'hf://gemma-2b'
    """
    words = _words(f"hf://{address}", "hf://owner/name or hf://owner/name/file", 2, 8)
    repository, file = "/".join(words[:2]), "/".join(words[2:])
    folder = _snapshot(repository, _patterns(file) if file else _FOLDER)
    if file and not (folder / file).is_file():
        raise UnknownModelError(f"expected {file} in hf://{repository}, got no such file: see {_page(repository)}")
    if not file and not _is_checkpoint(folder):
        raise UnknownModelError(
            f"expected config.json and safetensors in hf://{repository}, got other files: name one of those at "
            f"{_page(repository)}, as in hf://{repository}/model.gguf"
        )
    return folder / file


def dataset_from_hugging_face(address: str) -> Path:
    """The local copy of the data set `owner/name` (a folder with its files of rows) or of one file, `owner/name/file`.

    Raises what `from_hugging_face` raises.

    >>> dataset_from_hugging_face("gsm8k")
    Traceback (most recent call last):
    gemmary.base.errors.UnknownModelError: expected hf://datasets/owner/name[/file], got 'hf://datasets/gsm8k'
    """
    name = f"hf://datasets/{address}"
    words = _words(name, "hf://datasets/owner/name[/file]", 3, 9)
    repository, file = "/".join(words[:3]), "/".join(words[3:])
    found = _snapshot(repository, [glob.escape(file)] if file else _ROWS) / file
    if not (found.is_file() if file else any(found.rglob("*.*"))):
        wanted = file or f"files such as {', '.join(_ROWS)}"
        raise UnknownModelError(f"expected {wanted} in hf://{repository}, got none: see {_page(repository)}")
    return found


def from_kaggle(address: str) -> Path:
    """The local copy of `owner/model/framework/variation`, its newest version or the one that a fifth part names.

    All files of the variation are downloaded, as Kaggle packs them. Raises what `from_hugging_face` raises.

    >>> from_kaggle("google/gemma")
    Traceback (most recent call last):
    gemmary.base.errors.UnknownModelError: expected kaggle://owner/model/framework/variation, got 'kaggle://google/gemma'
    """
    words = _words(f"kaggle://{address}", "kaggle://owner/model/framework/variation", 4, 5)
    folder = _bundle("/".join(words))
    files = sorted(path for path in folder.iterdir() if path.suffix in (".gguf", ".ckpt"))
    if _is_checkpoint(folder):
        return folder
    if len(files) != 1:
        names = ", ".join(path.name for path in sorted(folder.iterdir()))[:200]
        raise UnknownModelError(f"expected one checkpoint in kaggle://{address}, got {names}: give a path in {folder}")
    return files[0]


def _words(name: str, form: str, at_least: int, at_most: int) -> list[str]:
    words = name.partition("://")[2].split("/")
    if not at_least <= len(words) <= at_most or not all(map(_WORD.fullmatch, words)):
        raise UnknownModelError(f"expected {form}, got {name[:200]!r}")
    return words


def _patterns(file: str) -> list[str]:
    """One file, and what is read from beside it; a .gguf has everything inside."""
    beside = () if file.endswith(".gguf") else _CONFIGS
    return [glob.escape(file), *(glob.escape(str(PurePosixPath(file).with_name(name))) for name in beside)]


def _is_checkpoint(folder: Path) -> bool:
    weights = ("model*.safetensors", "model.weights.*")
    is_model = (folder / "config.json").is_file() and any(any(folder.glob(each)) for each in weights)
    return is_model or (folder / "adapter_config.json").is_file()


def _snapshot(repository: str, patterns: list[str] | tuple[str, ...]) -> Path:
    """Some files of a model, `owner/name`, or of a data set, `datasets/owner/name`."""
    kind = "dataset" if repository.count("/") == 2 else "model"
    handle = "/".join(repository.split("/")[-2:])
    try:
        from huggingface_hub import constants, errors, snapshot_download
    except ImportError:
        raise MissingExtraError.of(f"hf://{repository}", "huggingface_hub", "hub") from None
    try:
        return Path(snapshot_download(handle, repo_type=kind, allow_patterns=list(patterns)))
    except errors.GatedRepoError:
        raise GatedError(
            f"expected accepted terms for {repository}, got none: read and accept {_terms(repository)} at "
            f"{_page(repository)}, then log in with `hf auth login` or set HF_TOKEN"
        ) from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError):
        raise UnknownModelError(
            f"expected a {kind} at {_page(repository)}, got none that you may read: check the name; "
            "for a private one log in with `hf auth login` or set HF_TOKEN"
        ) from None
    except Exception as error:  # of the client, of httpx or requests, of the system: its versions differ in which
        raise _failed(f"hf://{repository}", constants.ENDPOINT, error) from None


def _bundle(handle: str) -> Path:
    page = "https://www.kaggle.com/models/" + "/".join(handle.split("/")[:2])
    try:
        with redirect_stdout(sys.stderr):  # where its log belongs: stdout is for replies
            import kagglehub
    except ImportError:
        raise MissingExtraError.of(f"kaggle://{handle}", "kagglehub", "hub") from None
    try:
        with redirect_stdout(sys.stderr):
            return Path(kagglehub.model_download(handle))
    except Exception as error:  # of the client, of requests, of the system: told apart by the answer's status
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise GatedError(
                f"expected accepted terms for {handle}, got none: read and accept {_terms(handle)} at {page}, "
                "then log in with kagglehub.login() or set KAGGLE_API_TOKEN"
            ) from None
        if status == 404 or isinstance(error, ValueError):
            raise UnknownModelError(f"expected a model at {page}, got none such as {handle}: check the name") from None
        raise _failed(f"kaggle://{handle}", "Kaggle", error) from None


def _failed(name: str, where: str, error: Exception) -> FileError:
    reason = " ".join(str(error.__cause__ or error).split())[:160] or type(error).__name__
    return FileError(
        f"expected to download {name} from {where}, but: {reason}; check the connection and try again, or give a path"
    )


def _page(repository: str) -> str:
    return f"https://huggingface.co/{repository}"


def _terms(repository: str) -> str:
    is_googles = repository.startswith("google/")
    return "the Gemma Terms of Use (https://ai.google.dev/gemma/terms)" if is_googles else "its terms"
