# SPDX-License-Identifier: Apache-2.0
"""gemmary serve: a model behind OpenAI's protocol, with a page to talk on."""

import socket
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from gemmary.base.errors import InputError, MissingExtraError
from gemmary.cli import options

_MEBIBYTE = 2**20
NoDocuments = Annotated[bool, typer.Option("--no-documents", help="Answer from no documents and take none.")]


def serve(
    model: options.Model = None,
    adapter: options.Adapter = None,
    host: Annotated[str, typer.Option(help="The address to listen on; any but this machine's own needs a key.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="GEMMARY_API_KEY", metavar="KEY", help="What clients must send as their API key."),
    ] = None,
    origin: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Another site whose pages may ask; may be given several times."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="What clients call the model; by default its own name.")
    ] = None,
    slots: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Replies that run at once; by default what memory allows.")
    ] = None,
    queue: Annotated[int, typer.Option(min=0, metavar="N", help="Replies that may wait; past it: 429.")] = 256,
    max_body: Annotated[int, typer.Option(min=1, metavar="MIB", help="The most of a request's body, in MiB.")] = 8,
    documents: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The documents' file; by default the user's own.")
    ] = None,
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
    try:
        import uvicorn

        from gemmary.serve.doorway import LOOPBACK, Rules
        from gemmary.serve.server import create_app
    except ModuleNotFoundError as error:
        raise MissingExtraError.of("serving", error.name or "FastAPI", "serve") from error
    from gemmary.api import load
    from gemmary.formats.locate import CHAT_ADAPTER, DEFAULT
    from gemmary.serve.documents import Library

    key = (api_key or "").strip() or None
    if host not in LOOPBACK and key is None:
        raise InputError(
            f"expected --api-key with a host that others reach, got {host!r} without: choose a key, or 127.0.0.1"
        )
    listening = _listen(host, port)  # before the model is loaded, which takes longer
    if model is None and adapter is None:
        adapter = CHAT_ADAPTER
    generator = load(
        model,
        adapter=adapter,
        engine=engine,
        backend=backend,
        dtype=dtype,
        max_length=max_length,
        num_slots=slots,
        draft=draft,
    )
    rules = Rules(
        api_key=key,
        hosts=LOOPBACK if host in LOOPBACK else None,
        origins=tuple(origin or ()),
        body_limits={"": max_body * _MEBIBYTE, "/documents": 8 * max_body * _MEBIBYTE},
    )
    app = create_app(
        generator,
        name=name or (model or DEFAULT).rstrip("/").rpartition("/")[2],
        rules=rules,
        num_active=generator.engine.num_slots,
        max_waiting=queue,
        library=None if no_documents else Library(documents),
    )
    place = f"[{host}]" if ":" in host else host
    address = f"http://{place}:{listening.getsockname()[1]}"
    options.note(f"{DEFAULT if model is None else model} at {address}, its API at /v1; Ctrl-C ends it")
    config = uvicorn.Config(app, log_level="warning", server_header=False, lifespan="off")
    with suppress(KeyboardInterrupt):  # comes when what ran has ended
        uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise InputError(
            f"expected an address to listen on, got {host} and port {port}: {error.strerror}; choose others"
        ) from None
