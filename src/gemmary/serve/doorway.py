# SPDX-License-Identifier: Apache-2.0
"""Doorway: what every request passes before anything reads it, and what every answer carries.

request ─► host known? ─► from this page or an allowed origin? ─► key right? ─► body within its limit? ─► app
              400                       403                          401                413
"""

import hmac
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_OPEN = re.compile("/|/health|/page/[^/]+")  # read without the key: the page, which asks for it
_HEADERS = {
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_KINDS = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def error_body(status: int, message: str, *, code: str | None = None, param: str | None = None) -> bytes:
    """An error as OpenAI's clients read it, in ASCII, since what it quotes may be no valid text.

    >>> error_body(400, "expected text, got none: write some", code="empty")
    b'{"error": {"message": "expected text, ...", "type": "invalid_request_error", "param": null, "code": "empty"}}'
    """
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return json.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}}).encode()


@dataclass(frozen=True)
class Rules:
    """What a server lets in. Bytes of a body are limited by the longest of `body_limits` that begins the path.

    >>> Rules().limit("/v1/chat/completions"), Rules(body_limits={"": 9, "/documents": 99}).limit("/documents")
    (8388608, 99)
    """

    api_key: str | None = field(default=None, repr=False)
    hosts: tuple[str, ...] | None = None  # names this server is called by; None is any
    origins: tuple[str, ...] = ()  # other sites whose pages may ask
    body_limits: Mapping[str, int] = field(default_factory=lambda: {"": 8 * 2**20})

    def limit(self, path: str) -> int:
        """The most bytes of a body that a path takes.

        >>> Rules(body_limits={"": 5}).limit("/anything")
        5
        """
        return self.body_limits[max((start for start in self.body_limits if path.startswith(start)), key=len)]


class Doorway:
    """The ASGI application around another one.

    >>> from starlette.responses import PlainTextResponse
    >>> from starlette.testclient import TestClient
    >>> client = TestClient(Doorway(PlainTextResponse("in"), Rules(api_key="secret")))
    >>> client.get("/").text, client.post("/").status_code
    ('in', 401)
    """

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self._app = app
        self.rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        allowed = origin if origin in self.rules.origins else None
        dressed = _dressed(send, allowed, headers.get("access-control-request-headers", "authorization, content-type"))
        if allowed and scope["method"] == "OPTIONS":
            await _answer(dressed, 204, b"")
            return
        status, message = self._refusal(scope, headers, origin)
        if status:
            await _answer(dressed, status, error_body(status, message))
            return
        await self._app(scope, _limited(receive, self.rules.limit(scope["path"])), dressed)

    def _refusal(self, scope: Scope, headers: Headers, origin: str | None) -> tuple[int, str]:
        """The status and message of a request that is not let in; 0 lets it in."""
        rules, host = self.rules, headers.get("host", "")
        name = _split(f"//{host}").hostname
        if rules.hosts is not None and name not in rules.hosts:
            # a page elsewhere whose name was made to mean this machine (DNS rebinding) comes with that name
            return 400, f"expected a host of {', '.join(rules.hosts)}, got {host!r}: use one of these names"
        is_own = bool(host) and _split(origin or "").netloc == host
        if origin is not None and origin not in rules.origins and not is_own:
            return 403, f"expected a request of this server's own page, got one of {origin!r}: allow it with --origin"
        if not self._is_key_right(scope, headers):
            return 401, "expected the API key, got none or another: send it as 'Authorization: Bearer KEY'"
        length = headers.get("content-length", "0")
        limit = rules.limit(scope["path"])
        if not length.isdecimal() or int(length[:20]) > limit:
            return 413, f"expected a body of at most {limit} bytes, got {length[:20]}: send less"
        return 0, ""

    def _is_key_right(self, scope: Scope, headers: Headers) -> bool:
        key = self.rules.api_key
        if key is None or (scope["method"] == "GET" and _OPEN.fullmatch(scope["path"])):
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        return hmac.compare_digest(given.strip().encode("latin-1"), key.encode()) and scheme.lower() == "bearer"


def _split(address: str) -> SplitResult:
    """The parts of an address; none of what is no address."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


def _dressed(send: Send, origin: str | None, asked: str) -> Send:
    """Answers with our headers, and the origin that may read them and send the headers it asks for."""

    async def dressed(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            if origin is not None:
                headers["access-control-allow-origin"] = origin
                headers["access-control-allow-headers"] = asked
                headers["access-control-expose-headers"] = "retry-after"
                headers["access-control-allow-methods"] = "GET, POST, DELETE"
                headers.add_vary_header("origin")
        await send(message)

    return dressed


def _limited(receive: Receive, limit: int) -> Receive:
    """The same body, refused as soon as it is longer than it said or may be."""
    count = 0

    async def limited() -> Message:
        nonlocal count
        message = await receive()
        count += len(message.get("body", b""))
        if count > limit:
            raise HTTPException(413, f"expected a body of at most {limit} bytes, got more: send less")
        return message

    return limited


async def _answer(send: Send, status: int, body: bytes, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    kind = (b"content-type", b"application/json")
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [kind, length, *headers]})
    await send({"type": "http.response.body", "body": body})
