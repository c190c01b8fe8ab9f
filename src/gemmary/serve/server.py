# SPDX-License-Identifier: Apache-2.0
"""The server: OpenAI's protocol over a Generator, the page, and documents, as one ASGI application.

request ─► doorway.py ─► schema.py ─► conversation.py, tools.py ─► Request
                                                                     │ admission.py: its turn, a thread
client  ◄─────────────── answers.py: whole, or an event a token ◄── tokens of Generator.stream
"""

from http import HTTPStatus
from typing import TYPE_CHECKING

from fastapi import APIRouter, FastAPI, Response
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from gemmary.base.errors import BusyError, ContextError, InputError
from gemmary.generate.generator import Generator
from gemmary.serve.admission import Admission
from gemmary.serve.answers import Json
from gemmary.serve.doorway import Doorway, Rules, error_body
from gemmary.serve.metrics import Metrics
from gemmary.serve.panel import panel
from gemmary.serve.schema import ChatBody, CompletionBody, EmbeddingBody
from gemmary.serve.serving import Serving, json_response

if TYPE_CHECKING:
    from gemmary.serve.documents import Library

MOST_WAITING = 256
protocol = APIRouter()


def create_app(
    generator: Generator,
    *,
    name: str,
    rules: Rules | None = None,
    num_active: int = 8,
    max_waiting: int = MOST_WAITING,
    library: "Library | None" = None,
) -> FastAPI:
    """The application that serves a generator as the model `name`.

    `num_active` replies run at once and `max_waiting` more may wait; `library` are the documents that can be asked.

    >>> from gemmary.generate.scripted import ScriptedGenerator
    >>> app = create_app(ScriptedGenerator({"Hi": "Hello!"}), name="gemma")
    >>> "/v1/chat/completions" in app.openapi()["paths"]
    True
    """
    admission = Admission(num_active=num_active, max_waiting=max_waiting)

    # the usual pages of documentation load their scripts from elsewhere; /openapi.json is what there is
    app = FastAPI(title="Gemmary", docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.serving = Serving(generator, name, admission, Metrics(admission), library)
    app.include_router(protocol)
    app.include_router(panel)
    app.add_middleware(Doorway, rules=rules or Rules())
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(InputError, _refused)
    app.add_exception_handler(BusyError, _busy)
    app.add_exception_handler(HTTPException, _other)
    app.add_exception_handler(Exception, _bug)
    return app


@protocol.get("/v1/models")
async def models(http: HttpRequest) -> Response:
    """The one model that is served, and the most tokens of a prompt and its reply.

    >>> protocol.url_path_for("models")
    '/v1/models'
    """
    return json_response({"object": "list", "data": [_model(_serving(http))]})


@protocol.get("/v1/models/{model:path}")
async def model(http: HttpRequest, model: str) -> Response:
    """That model by its name.

    >>> protocol.url_path_for("model", model="gemma")
    '/v1/models/gemma'
    """
    _check_model(http, model)
    return json_response(_model(_serving(http)))


@protocol.post("/v1/chat/completions")
async def chat(http: HttpRequest, body: ChatBody) -> Response:
    """A reply to a conversation.

    >>> protocol.url_path_for("chat")
    '/v1/chat/completions'
    """
    _check_model(http, body.model)
    return await _serving(http).chat(http, body)


@protocol.post("/v1/completions")
async def completions(http: HttpRequest, body: CompletionBody) -> Response:
    """What prompts go on with.

    >>> protocol.url_path_for("completions")
    '/v1/completions'
    """
    _check_model(http, body.model)
    return await _serving(http).complete(http, body)


@protocol.post("/v1/embeddings")
async def embeddings(http: HttpRequest, body: EmbeddingBody) -> Response:
    """The mean of each input's final hidden states, of length 1: a Gemma was not trained to embed, and it shows.

    >>> protocol.url_path_for("embeddings")
    '/v1/embeddings'
    """
    _check_model(http, body.model)
    return await _serving(http).embed(http, body)


@protocol.get("/health")
async def health(http: HttpRequest) -> Response:
    """That the server is there, and how much it has to do.

    >>> protocol.url_path_for("health")
    '/health'
    """
    admission = _serving(http).admission
    return json_response({"status": "ok", "running": admission.num_active, "waiting": admission.num_waiting})


@protocol.get("/metrics")
async def metrics(http: HttpRequest) -> Response:
    """Counts and times for Prometheus.

    >>> protocol.url_path_for("metrics")
    '/metrics'
    """
    return Response(_serving(http).metrics.text(), media_type="text/plain; version=0.0.4")


def _serving(http: HttpRequest) -> Serving:
    serving: Serving = http.app.state.serving
    return serving


def _model(serving: Serving) -> Json:
    return {
        "id": serving.name,
        "object": "model",
        "created": 0,
        "owned_by": "gemmary",
        "max_length": serving.generator.max_length,
    }


def _check_model(http: HttpRequest, name: str | None) -> None:
    if name is not None and name != _serving(http).name:
        raise HTTPException(404, f"expected the model {_serving(http).name!r}, got {name!r}: GET /v1/models lists it")


def _error(status: int, message: str, code: str | None = None, seconds: int | None = None) -> Response:
    headers = {} if seconds is None else {"retry-after": str(seconds)}
    body = error_body(status, message, code=code)
    return Response(body, status_code=status, headers=headers, media_type="application/json")


async def _invalid(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return _error(400, f"expected JSON, got a fault at character {first['loc'][-1]}: {first['ctx']['error']}")
    place = ".".join(str(step) for step in first["loc"][1:]) or "a body"
    came = repr(first.get("input"))[:100]
    return _error(400, f"expected {place} as documented, got {came}: {first['msg']}", code=first["type"])


async def _refused(http: HttpRequest, error: Exception) -> Response:
    return _error(400, str(error), code="context_length_exceeded" if isinstance(error, ContextError) else None)


async def _busy(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, BusyError)
    return _error(429, str(error), seconds=error.seconds)


async def _other(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = str(error.detail)
    if message == HTTPStatus(error.status_code).phrase:
        message = f"expected a known path and method, got {http.method} {http.url.path}: see /openapi.json"
    elif not message.startswith("expected"):
        message = f"expected a body that can be read, got one that cannot: {message}"
    return _error(error.status_code, message)


async def _bug(http: HttpRequest, error: Exception) -> Response:
    return _error(500, f"expected an answer, got {type(error).__name__}: this is a bug, the server's log has more")
