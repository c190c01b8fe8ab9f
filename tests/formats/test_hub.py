# SPDX-License-Identifier: Apache-2.0
"""Downloads, against a server on this machine that speaks as much of both hubs' protocols as their clients need.

The clients read their settings when they are imported, so names are located in a process of their own.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gemmary.formats.adapter import Adapter
from gemmary.formats.checkpoint import Checkpoint, open_checkpoint, write_checkpoint
from gemmary.formats.peft_folder import read_adapter, write_adapter

COMMIT = "c0ffee" * 6 + "c0de"
CHILD = """
import json, sys
from gemmary.base.errors import GemmaryError
from gemmary.formats.hub import dataset_from_hugging_face
from gemmary.formats.locate import locate
DATASETS = "hf://datasets/"
results = []
for name in sys.argv[1:]:
    try:
        is_data = name.startswith(DATASETS)
        path = dataset_from_hugging_face(name.removeprefix(DATASETS)) if is_data else locate(name)
        results.append(["path", str(path)])
    except GemmaryError as error:
        results.append([type(error).__name__, str(error)])
print(json.dumps(results))
"""


class Hubs(ThreadingHTTPServer):
    """Serves the folders below `root`; repositories called "gated" want terms accepted, "cut" drop connections."""

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.root = root
        self.asked: list[str] = []  # the paths of all requests
        self.cuts: dict[str, int] = {}  # how often each file was cut


class Answer(BaseHTTPRequestHandler):
    server: Hubs
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = re.sub("^http://[^/]*", "", self.path).partition("?")[0]
        self.server.asked.append(f"{self.command} {path}")
        if match := re.fullmatch(
            r"/api/(?:models/|(?=datasets/))((?:datasets/)?[^/]+/[^/]+)(/revision/\w+|/tree/\w+)?", path
        ):
            self.hugging_face(match[1], is_tree="/tree/" in (match[2] or ""))
        elif match := re.fullmatch(r"/((?:datasets/)?[^/]+/([^/]+))/resolve/\w+/(.+)", path):
            if match[2] == "gated":
                self.answer(401, headers={"X-Error-Code": "GatedRepo"})
            else:
                self.file(self.server.root / match[1] / match[3])
        else:
            self.file(self.server.root / path.removeprefix("/storage/"))

    def hugging_face(self, repository: str, *, is_tree: bool) -> None:
        folder = self.server.root / repository
        if not folder.is_dir():
            self.answer(401, headers={"X-Error-Code": "RepoNotFound"})
        elif is_tree:
            files = [path for path in folder.rglob("*") if path.is_file()]
            listed = [{"type": "file", "path": str(path.relative_to(folder)), "oid": "0"} for path in files]
            self.answer(200, [{**each, "size": (folder / each["path"]).stat().st_size} for each in listed])
        else:
            self.answer(200, {"id": repository, "sha": COMMIT, "siblings": [], "tags": [], "private": False})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        method = self.path.rpartition("/")[2]
        folder = self.server.root / asked["ownerSlug"] / asked["modelSlug"] / asked["instanceSlug"]
        self.server.asked.append(f"POST {method} {asked.get('path', '')}")
        if not folder.is_dir():
            self.answer(404, {"code": 404, "message": "not found"})
        elif method == "GetModelInstance":
            self.answer(200, {"versionNumber": 3})
        elif asked["modelSlug"] == "gated":
            self.answer(403, {"code": 403, "message": "consent"})
        elif method == "ListModelInstanceVersionFiles":
            names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
            self.answer(200, {"files": [{"name": name} for name in names], "nextPageToken": ""})
        else:
            file = folder / asked["path"]
            self.answer(302, headers={"Location": f"http://localhost/storage/{file.relative_to(self.server.root)}"})

    def file(self, path: Path) -> None:
        if not path.is_file():
            self.answer(404, headers={"X-Error-Code": "EntryNotFound"})
            return
        content = path.read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        start = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        status, content = (206, content[int(start[1]) :]) if start else (200, content)
        is_cut = "/cut/" in str(path) and path.suffix == ".safetensors" and self.command == "GET"
        if is_cut and self.server.cuts.setdefault(str(path), 0) == 0:
            self.server.cuts[str(path)] += 1
            self.answer(status, content, headers, sent=len(content) // 2)
            self.close_connection = True
        else:
            self.answer(status, content, headers)

    def answer(self, status: int, content: Any = b"", headers: Any = None, sent: int | None = None) -> None:
        is_json = not isinstance(content, bytes)
        raw = json.dumps(content).encode() if is_json else content
        self.send_response(status)
        kind = {"Content-Type": "application/json"} if is_json else {}
        for name, value in {**kind, **(headers or {}), "Content-Length": str(len(raw))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw[:sent])

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def hubs(tmp_path: Path) -> Iterator[Hubs]:
    server = Hubs(tmp_path / "hubs")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def located(endpoint: str, home: Path, *names: str, **more: str) -> list[tuple[str, str]]:
    """What `locate` returns or raises for each name; all traffic of both clients goes to the endpoint."""
    clean = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    variables = {
        **clean,
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "KAGGLEHUB_CACHE": str(home / "kaggle"),
        "KAGGLE_API_ENVIRONMENT": "LOCALHOST",  # http://localhost, to which the next line gives the port
        "HTTP_PROXY": endpoint,
        "NO_PROXY": "127.0.0.1",
        **more,
    }
    done = subprocess.run([sys.executable, "-c", CHILD, *names], capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stderr
    results: list[tuple[str, str]] = [(kind, text) for kind, text in json.loads(done.stdout)]
    assert all("\n" not in text for _, text in results)
    return results


def endpoint_of(server: Hubs) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def bits(checkpoint: Checkpoint) -> dict[str, bytes]:
    return {path: read().tobytes() for path, read in checkpoint.tensors.items()}


@pytest.fixture
def tiny_folder(hubs: Hubs, make_tiny: Callable[..., Checkpoint]) -> Callable[[str], Path]:
    """Writes the tiny Gemma 2 as a repository of that name, among files that nobody needs."""

    def write(name: str) -> Path:
        folder = hubs.root / name
        write_checkpoint(make_tiny("gemma2"), folder, format="safetensors")
        for more in ("README.md", "gemma.gguf", "pytorch_model.bin", "flax_model.msgpack"):
            (folder / more).write_bytes(b"not needed")
        return folder

    return write


def test_a_repository_is_downloaded_once_and_only_what_is_read(
    hubs: Hubs, tiny_folder: Callable[[str], Path], make_tiny: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    tiny_folder("owner/good")
    first, second = located(endpoint_of(hubs), tmp_path, "hf://owner/good", "hf://owner/good")
    assert first == second and first[0] == "path"
    wanted = {"config.json", "tokenizer.model", "tokenizer.json", "model.safetensors"}
    assert {path.name for path in Path(first[1]).iterdir()} == wanted
    fetched = [asked for asked in hubs.asked if asked.startswith("GET") and "/resolve/" in asked]
    assert len(fetched) == 4
    assert bits(open_checkpoint(Path(first[1]))) == bits(make_tiny("gemma2"))
    offline = located("http://127.0.0.1:9", tmp_path, "hf://owner/good", HF_HUB_OFFLINE="1")
    assert offline == [first]


def test_a_name_of_the_family_is_googles_repository(
    hubs: Hubs, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    tiny_folder("google/gemma-2b-it")
    (result,) = located(endpoint_of(hubs), tmp_path, "gemma-2b-it")
    assert result[0] == "path" and "models--google--gemma-2b-it" in result[1]


def test_one_file_of_a_repository(hubs: Hubs, make_tiny: Callable[..., Checkpoint], tmp_path: Path) -> None:
    tiny = make_tiny("gemma1")
    for name in ("a.gguf", "b.gguf"):
        write_checkpoint(tiny, hubs.root / "owner" / "files" / name, format="gguf")
    write_checkpoint(tiny, hubs.root / "owner" / "files" / "sub", format="safetensors")
    names = ["a.gguf", "sub/model.safetensors", "c.gguf"]
    one, inner, missing, whole = located(
        endpoint_of(hubs), tmp_path, *(f"hf://owner/files/{name}" for name in names), "hf://owner/files"
    )
    assert bits(open_checkpoint(Path(one[1]))) == bits(open_checkpoint(Path(inner[1]))) == bits(tiny)
    assert not any("b.gguf" in asked for asked in hubs.asked)
    assert missing[0] == "UnknownModelError" and "expected c.gguf in hf://owner/files, got no such file" in missing[1]
    assert whole[0] == "UnknownModelError" and "name one of those at https://huggingface.co/owner/files" in whole[1]


def test_a_data_set_is_its_files_of_rows_or_the_one_named(hubs: Hubs, tmp_path: Path) -> None:
    folder = hubs.root / "datasets/owner/rain"
    for name in ("README.md", "data/train.jsonl.gz", "data/test.parquet", "all.txt", "image.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    (hubs.root / "datasets/owner/images").mkdir()
    (hubs.root / "datasets/owner/images/image.png").touch()
    (hubs.root / "datasets/owner/gated").mkdir()
    (hubs.root / "datasets/owner/gated/a.jsonl").touch()
    names = ["rain/data/train.jsonl.gz", "rain", "rain/none.jsonl", "images", "none", "gated"]
    one, whole, no_file, no_rows, none, gated = located(
        endpoint_of(hubs), tmp_path, *(f"hf://datasets/owner/{name}" for name in names)
    )
    assert Path(one[1]).read_text("utf-8") == "data/train.jsonl.gz"
    found = {path.relative_to(whole[1]).as_posix() for path in Path(whole[1]).rglob("*") if path.is_file()}
    assert found == {"data/train.jsonl.gz", "data/test.parquet", "all.txt"}
    assert no_file[0] == no_rows[0] == none[0] == "UnknownModelError" and gated[0] == "GatedError"
    page = "https://huggingface.co/datasets/owner"
    assert no_file[1] == f"expected none.jsonl in hf://datasets/owner/rain, got none: see {page}/rain"
    assert no_rows[1].startswith("expected files such as *.parquet, ")
    assert none[1].startswith(f"expected a dataset at {page}/none, got none that you may read")
    assert f"accept its terms at {page}/gated" in gated[1]


def test_an_adapter_is_downloaded_as_a_model_is(
    hubs: Hubs, make_tiny: Callable[..., Checkpoint], random_adapter: Callable[..., Adapter], tmp_path: Path
) -> None:
    adapter = random_adapter(make_tiny("gemma3"))
    write_adapter(adapter, hubs.root / "owner" / "adapter")
    ((kind, path),) = located(endpoint_of(hubs), tmp_path, "hf://owner/adapter")
    assert kind == "path" and read_adapter(Path(path)).base == adapter.base


def test_terms_that_are_not_accepted_are_named_with_the_place_to_accept_them(
    hubs: Hubs, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    for name in ("owner/gated", "google/gated", "google/gated/2b"):
        tiny_folder(name)
    other, google, kaggle = located(
        endpoint_of(hubs), tmp_path, "hf://owner/gated", "hf://google/gated", "kaggle://google/gated/keras/2b"
    )
    assert (other[0], google[0], kaggle[0]) == ("GatedError",) * 3
    assert "accept its terms at https://huggingface.co/owner/gated, then log in" in other[1]
    terms = "the Gemma Terms of Use (https://ai.google.dev/gemma/terms)"
    assert f"accept {terms} at https://huggingface.co/google/gated, then log in" in google[1]
    assert f"accept {terms} at https://www.kaggle.com/models/google/gated, then log in" in kaggle[1]


def test_names_that_lead_nowhere_say_so(hubs: Hubs, tmp_path: Path) -> None:
    names = ["hf://owner/none", "gemma-7b", "hf://owner", "hf://../etc", "hf://a/b/../c", "hf://a b/c", "kaggle://a/b"]
    names += ["kaggle://google/none/keras/2b", "kaggle://google/none/abacus/2b", "kaggle://a/b/keras/d/newest"]
    for name, (kind, text) in zip(names, located(endpoint_of(hubs), tmp_path, *names), strict=True):
        assert kind == "UnknownModelError" and text.startswith("expected"), name


@pytest.mark.slow
def test_a_cut_connection_is_resumed_or_reported_in_one_line(
    hubs: Hubs, tiny_folder: Callable[[str], Path], make_tiny: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    tiny_folder("owner/cut")
    tiny_folder("google/cut/2b")
    (hubs.root / "google/cut/2b/gemma.gguf").unlink()
    resumed, failed, again = located(
        endpoint_of(hubs), tmp_path, "hf://owner/cut", *["kaggle://google/cut/transformers/2b"] * 2
    )
    assert sorted(hubs.cuts.values()) == [1, 1]
    assert failed[0] == "FileError" and "check the connection and try again" in failed[1]
    assert bits(open_checkpoint(Path(resumed[1]))) == bits(open_checkpoint(Path(again[1]))) == bits(make_tiny("gemma2"))


def test_without_a_network_one_line_says_what_failed(tmp_path: Path) -> None:
    first, second = located("http://127.0.0.1:9", tmp_path, "gemma-2b", "kaggle://google/gemma/keras/2b")
    assert first[0] == second[0] == "FileError"
    assert first[1].startswith("expected to download hf://google/gemma-2b from http://127.0.0.1:9, but: ")
    assert second[1].startswith("expected to download kaggle://google/gemma/keras/2b from Kaggle, but: ")


@pytest.mark.slow
def test_a_bundle_of_kaggle_is_downloaded(hubs: Hubs, make_tiny: Callable[..., Checkpoint], tmp_path: Path) -> None:
    tiny = make_tiny("gemma3")
    write_checkpoint(tiny, hubs.root / "google/gemma/preset", format="keras")
    write_checkpoint(tiny, hubs.root / "google/gemma/one/gemma.ckpt", format="torch")
    for name in ("a.gguf", "b.gguf"):
        write_checkpoint(tiny, hubs.root / "google/gemma/two" / name, format="gguf")
    keras, torch, two = located(
        endpoint_of(hubs),
        tmp_path,
        *(f"kaggle://google/gemma/{each}" for each in ("keras/preset", "pytorch/one/1", "ggml/two")),
    )
    assert bits(open_checkpoint(Path(keras[1]))) == bits(open_checkpoint(Path(torch[1]))) == bits(tiny)
    assert open_checkpoint(Path(keras[1])).vocabulary is not None
    assert Path(torch[1]).name == "gemma.ckpt" and "/one/1/" in torch[1] and "/preset/3" in keras[1]
    assert two[0] == "UnknownModelError" and "expected one checkpoint" in two[1]


@pytest.mark.parametrize(("name", "client"), [("gemma-2b", "huggingface_hub"), ("kaggle://a/b/keras/d", "kagglehub")])
def test_a_missing_client_names_the_extra(name: str, client: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from gemmary.base.errors import MissingExtraError
    from gemmary.formats.locate import locate

    monkeypatch.setitem(sys.modules, client, None)
    with pytest.raises(MissingExtraError, match=rf"needs {client}: pip install 'gemmary\[hub\]'"):
        locate(name)
