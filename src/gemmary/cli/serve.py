# SPDX-License-Identifier: Apache-2.0
"""gemmary serve: a model behind OpenAI's protocol, with a page to talk on."""

import socket
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemmary.base.errors import InputError, MissingExtraError
from gemmary.cli import options

if TYPE_CHECKING:
    from fastapi import FastAPI

    from gemmary.serve.doorway import Rules

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_MEBIBYTE = 2**20
Host = Annotated[str, typer.Option(help="The address to listen on; any but this machine's own needs a key.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")]
ApiKey = Annotated[
    str | None, typer.Option(envvar="GEMMARY_API_KEY", metavar="KEY", help="What clients must send as their API key.")
]
Origins = Annotated[
    list[str] | None,
    typer.Option("--origin", metavar="URL", help="Another site whose pages may ask; may be given several times."),
]
Name = Annotated[str | None, typer.Option(metavar="NAME", help="What clients call the model; by default its own name.")]
Proxy = Annotated[
    bool,
    typer.Option("--proxy", help="A proxy on this machine says in X-Forwarded-For who asks: its clients take turns."),
]
Slots = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Replies that run at once; by default what memory allows.")
]
Queue = Annotated[int, typer.Option(min=0, metavar="N", help="Replies that may wait; past it: 429.")]
MaxBody = Annotated[int, typer.Option(min=1, metavar="MIB", help="The most of a request's body, in MiB.")]
Documents = Annotated[Path | None, typer.Option(metavar="FILE", help="The documents' file; by default the user's own.")]
NoDocuments = Annotated[bool, typer.Option("--no-documents", help="Answer from no documents and take none.")]


def serve(
    model: options.Model = None,
    adapter: options.Adapter = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key: ApiKey = None,
    origin: Origins = None,
    proxy: Proxy = False,
    name: Name = None,
    slots: Slots = None,
    queue: Queue = 256,
    max_body: MaxBody = 8,
    documents: Documents = None,
    no_documents: NoDocuments = False,
    engine: options.Engine = "auto",
    backend: options.KerasBackend = None,
    dtype: options.Precision = "float32",
    max_length: options.MaxLength = None,
    draft: options.Draft = "lookup",
) -> None:
    """Serve a model: OpenAI's protocol under /v1, a page to talk on at /, documents, /health and /metrics.

    Without a model's name it is the embedded default with its chat adapter. Ctrl-C ends it when the replies that are
    running are done, a second one at once.

    >>> serve(host="0.0.0.0")
    Traceback (most recent call last):
    gemmary.base.errors.InputError: expected --api-key with a host that others reach, got '0.0.0.0' without: choose ...
    """
    for module in ("fastapi", "uvicorn", "prometheus_client", "python_multipart", "markdown_it", "nh3"):
        if find_spec(module) is None:
            raise MissingExtraError.of("serving", module, "serve")
    from gemmary.api import load
    from gemmary.formats.locate import DEFAULT
    from gemmary.serve.documents import Library
    from gemmary.serve.server import create_app

    rules = _rules(host, api_key, origin or [], max_body)
    listening = _listen(host, port)  # before the model is loaded, which takes longer
    generator = load(
        model,
        adapter=options.conversing(model, adapter),
        engine=engine,
        backend=backend,
        dtype=dtype,
        max_length=max_length,
        num_slots=slots,
        draft=draft,
    )
    known = model or DEFAULT
    app = create_app(
        generator,
        name=name or known.rstrip("/").rpartition("/")[2],
        rules=rules,
        num_active=generator.engine.num_slots,
        max_waiting=queue,
        library=None if no_documents else Library(documents),
    )
    _run(app, listening, known, proxy=proxy)


def _rules(host: str, api_key: str | None, origins: list[str], max_body: int) -> "Rules":
    from gemmary.serve.doorway import Rules

    key = (api_key or "").strip() or None
    if host not in LOOPBACK and key is None:
        raise InputError(
            f"expected --api-key with a host that others reach, got {host!r} without: choose a key, or 127.0.0.1"
        )
    return Rules(
        api_key=key,
        hosts=LOOPBACK if host in LOOPBACK else None,
        origins=tuple(origins),
        body_limits={"": max_body * _MEBIBYTE, "/documents": 8 * max_body * _MEBIBYTE},
    )


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise InputError(
            f"expected an address to listen on, got {host} and port {port}: {error.strerror}; choose others"
        ) from None


def _run(app: "FastAPI", listening: socket.socket, model: str, *, proxy: bool) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    import uvicorn

    host, port = listening.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    options.note(f"{model} at {address}, its API at {address}/v1; Ctrl-C ends it")
    config = uvicorn.Config(app, log_level="warning", server_header=False, lifespan="off", proxy_headers=proxy)
    with suppress(KeyboardInterrupt):  # comes when what ran has ended
        uvicorn.Server(config).run(sockets=[listening])
