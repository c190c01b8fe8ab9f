# SPDX-License-Identifier: Apache-2.0
"""Real servers on free ports of this machine, for as long as a module's tests need them."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
import uvicorn

from gemmary.generate.generator import Generator
from gemmary.serve.server import create_app

Serving = Callable[..., str]


@contextmanager
def served(generator: Generator, **settings: object) -> Iterator[str]:
    """The address of a server that ends with the block."""
    app = create_app(generator, **{"name": "gemma", **settings})
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off", timeout_graceful_shutdown=5)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server ended before it began"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def serving() -> Iterator[Serving]:
    """serving(generator, **settings of create_app) gives the address of its server."""
    with ExitStack() as stack:
        yield lambda generator, **settings: stack.enter_context(served(generator, **settings))
