# SPDX-License-Identifier: Apache-2.0
"""What GET /metrics says, in Prometheus' words."""

import time
from collections.abc import AsyncGenerator, AsyncIterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from gemmary.generate.request import Token
from gemmary.serve.admission import Admission

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Counts and times of one server's replies, in a registry of their own.

    >>> b"gemmary_replies_running 0.0" in Metrics(Admission(num_active=1, max_waiting=1)).text()
    True
    """

    def __init__(self, admission: Admission) -> None:
        self._registry = registry = CollectorRegistry()
        self._replies = Counter("gemmary_replies", "Replies, by how they ended.", ["reason"], registry=registry)
        self._prompt = Counter("gemmary_prompt_tokens", "Tokens of prompts.", registry=registry)
        self._cached = Counter("gemmary_cached_tokens", "Tokens of prompts that were in the cache.", registry=registry)
        self._generated = Counter("gemmary_generated_tokens", "Tokens of replies.", registry=registry)
        self._first = Histogram(
            "gemmary_time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            buckets=_SECONDS,
            registry=registry,
        )
        running = Gauge("gemmary_replies_running", "Replies that are running.", registry=registry)
        running.set_function(lambda: admission.num_active)
        waiting = Gauge("gemmary_replies_waiting", "Replies that wait for their turn.", registry=registry)
        waiting.set_function(lambda: admission.num_waiting)

    def text(self) -> bytes:
        """All of them, in the text format.

        >>> Metrics(Admission(num_active=1, max_waiting=1)).text().startswith(b"# HELP gemmary_replies_total")
        True
        """
        return generate_latest(self._registry)

    async def watched(self, tokens: AsyncIterator[Token]) -> AsyncGenerator[Token, None]:
        """The same tokens, counted.

        >>> import asyncio
        >>> async def one():
        ...     yield Token(id=5, text="a", finish_reason="stop")
        >>> async def read(metrics):
        ...     return [token.text async for token in metrics.watched(one())]
        >>> metrics = Metrics(Admission(num_active=1, max_waiting=1))
        >>> asyncio.run(read(metrics)), b"gemmary_generated_tokens_total 1.0" in metrics.text()
        (['a'], True)
        """
        began, count, reason = time.monotonic(), 0, "cancelled"
        try:
            async for token in tokens:
                if count == 0:
                    self._first.observe(time.monotonic() - began)
                count += 1
                reason = token.finish_reason or reason
                if token.usage is not None:
                    self._prompt.inc(token.usage.prompt_tokens)
                    self._cached.inc(token.usage.cached_tokens)
                yield token
        finally:
            self._generated.inc(count)
            self._replies.labels(reason).inc()
