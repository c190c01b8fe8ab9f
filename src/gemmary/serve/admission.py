# SPDX-License-Identifier: Apache-2.0
"""Admission: whose request runs next, how many at once, and how a thread's tokens reach the event loop.

    client A  r1 r2 r3 ─┐
    client B  r4        ├─► r1 r4 r2 r3 ─► num_active at once, a thread each ─► tokens, awaited
    client C  r5 ...   ─┘   each client in turn; past max_waiting: BusyError

A reply that nobody awaits any more is closed: its slot is free after the step that is running.
"""

import asyncio
import math
import time
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from gemmary.base.errors import BusyError, InputError
from gemmary.generate.generator import Stream
from gemmary.generate.request import Token

_T = TypeVar("_T")
_USUAL_SECONDS = 5.0  # a reply takes, until some have been seen
_MOST_SECONDS = 60  # that a client is told to wait


class Admission:
    """A bounded queue that is fair to clients; all methods are the event loop's, only the threads inside are not.

    >>> from gemmary.generate.request import Request
    >>> from gemmary.generate.scripted import ScriptedGenerator
    >>> async def said():
    ...     admission = Admission(num_active=2, max_waiting=8)
    ...     stream = ScriptedGenerator({"Hi": "Hello!"}).stream(Request("Hi"))
    ...     return "".join([token.text async for token in admission.tokens(stream, "127.0.0.1")])
    >>> asyncio.run(said())
    'Hello!'
    """

    def __init__(self, *, num_active: int, max_waiting: int) -> None:
        self._most_active = num_active
        self._max_waiting = max_waiting
        self._num_active = 0
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._threads = ThreadPoolExecutor(num_active, thread_name_prefix="reply")
        self._seconds = _USUAL_SECONDS  # a reply takes, of late

    @property
    def num_active(self) -> int:
        """How many replies are running.

        >>> Admission(num_active=2, max_waiting=8).num_active
        0
        """
        return self._num_active

    @property
    def num_waiting(self) -> int:
        """How many wait for their turn.

        >>> Admission(num_active=2, max_waiting=8).num_waiting
        0
        """
        return sum(not turn.done() for turns in self._waiting.values() for turn in turns)

    def check_room(self, count: int) -> None:
        """Raise BusyError where `count` more replies find no room, InputError where they never would.

        >>> Admission(num_active=1, max_waiting=2).check_room(3)
        >>> Admission(num_active=1, max_waiting=2).check_room(4)
        Traceback (most recent call last):
        gemmary.base.errors.InputError: expected at most 3 replies at once, got 4: ask for fewer choices or prompts
        """
        most = self._most_active + self._max_waiting
        if count > most:
            raise InputError(f"expected at most {most} replies at once, got {count}: ask for fewer choices or prompts")
        if count <= self._most_active - self._num_active + self._max_waiting - self.num_waiting:
            return
        rounds = 1 + self.num_waiting / self._most_active
        seconds = max(1, min(_MOST_SECONDS, math.ceil(self._seconds * rounds)))
        raise BusyError(
            f"expected room for {count} more replies, got {self._num_active} running and {self.num_waiting} of "
            f"{self._max_waiting} waiting: come back in {seconds} seconds",
            seconds=seconds,
        )

    async def tokens(self, stream: Stream, client: str) -> AsyncGenerator[Token, None]:
        """A reply's tokens when its turn has come; however this ends, the stream is closed and the turn passed on."""
        try:
            async with self._turn(client):
                async for token in self._run(stream):
                    yield token
        finally:
            with suppress(ValueError):  # a Python generator that is running in its thread cannot be closed, and ends
                stream.close()

    async def run(self, work: Callable[[], _T], client: str) -> _T:
        """What a function gives in a thread when its turn has come; the place is free when the thread is.

        >>> asyncio.run(Admission(num_active=1, max_waiting=2).run(lambda: 7, "127.0.0.1"))
        7
        """
        async with self._turn(client):
            done = asyncio.wrap_future(self._threads.submit(work))
            try:
                return await asyncio.shield(done)
            finally:
                await asyncio.wait([done])

    @asynccontextmanager
    async def _turn(self, client: str) -> AsyncIterator[None]:
        if self._num_active == self._most_active:
            await self._wait(client)  # whoever ends hands its place over
        else:
            self._num_active += 1
        began = time.monotonic()
        try:
            yield
        finally:
            self._seconds += (time.monotonic() - began - self._seconds) / 8
            self._pass_on()

    async def _wait(self, client: str) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._pass_on()  # it came in the same moment
            elif turn in (turns := self._waiting.get(client, deque())):
                turns.remove(turn)
                if not turns:
                    del self._waiting[client]
            raise

    def _pass_on(self) -> None:
        """Hand one's place to the first of the client whose turn it is; nobody waits for a turn that was cancelled."""
        while self._waiting:
            client, turns = self._waiting.popitem(last=False)
            turn = turns.popleft()
            if turns:
                self._waiting[client] = turns  # at the end: the others come first
            if not turn.done():
                turn.set_result(None)
                return
        self._num_active -= 1

    async def _run(self, stream: Stream) -> AsyncGenerator[Token, None]:
        loop = asyncio.get_running_loop()
        came: asyncio.Queue[Token | Exception | None] = asyncio.Queue()

        def work() -> None:
            end: Exception | None = None
            try:
                for token in stream:
                    loop.call_soon_threadsafe(came.put_nowait, token)
            except BaseException as error:  # whoever awaits the tokens gets it: llguidance's panics are no Exception
                end = error if isinstance(error, Exception) else RuntimeError(repr(error))
            loop.call_soon_threadsafe(came.put_nowait, end)

        self._threads.submit(work)
        while (item := await came.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
