# SPDX-License-Identifier: Apache-2.0
"""Admission: each client in turn, a bound, and a place that is free again however a reply ends."""

import asyncio
from collections.abc import Coroutine, Iterator

import pytest

from gemmary.base.errors import BusyError, InputError
from gemmary.generate.generator import Stream
from gemmary.generate.request import Token
from gemmary.serve.admission import Admission


class Reply:
    """A stream that ends when it is told to, and says when it began and was closed."""

    def __init__(self, name: str, log: list[str], *, error: Exception | None = None) -> None:
        self.name, self.log, self.error = name, log, error

    def __iter__(self) -> Iterator[Token]:
        self.log.append(f"{self.name} runs")
        if self.error:
            raise self.error
        yield Token(id=5, text=self.name, finish_reason="stop")

    def __next__(self) -> Token:
        raise NotImplementedError

    def close(self) -> None:
        self.log.append(f"{self.name} closed")


async def read(admission: Admission, stream: Stream, client: str) -> str:
    return "".join([token.text async for token in admission.tokens(stream, client)])


def run(work: Coroutine[object, object, None]) -> None:
    asyncio.run(work)


def test_each_client_has_its_turn_however_many_requests_another_has() -> None:
    log: list[str] = []

    async def work() -> None:
        admission = Admission(num_active=1, max_waiting=9)
        names = ["a1", "a2", "a3", "a4", "b1", "b2", "c1"]
        said = await asyncio.gather(*(read(admission, Reply(name, log), name[0]) for name in names))
        assert said == names
        assert (admission.num_active, admission.num_waiting) == (0, 0)

    run(work())
    assert [line[:2] for line in log if "runs" in line] == ["a1", "a2", "b1", "c1", "a3", "b2", "a4"]


def test_past_the_bound_a_client_is_told_when_to_come_back() -> None:
    async def work() -> None:
        admission = Admission(num_active=2, max_waiting=1)
        tasks = [asyncio.ensure_future(read(admission, Reply("r", []), "a")) for _ in range(3)]
        await asyncio.sleep(0)
        assert (admission.num_active, admission.num_waiting) == (2, 1)
        with pytest.raises(BusyError, match="come back in") as caught:
            admission.check_room(1)
        assert 1 <= caught.value.seconds <= 60
        await asyncio.gather(*tasks)
        admission.check_room(3)
        with pytest.raises(InputError, match="at most 3 replies at once"):
            admission.check_room(4)  # there never will be

    run(work())


def test_who_stops_waiting_holds_no_place_and_takes_none() -> None:
    log: list[str] = []

    async def work() -> None:
        admission = Admission(num_active=1, max_waiting=9)
        first, gone, last = (
            asyncio.ensure_future(read(admission, Reply(name, log), "a")) for name in ("one", "two", "three")
        )
        await asyncio.sleep(0)
        gone.cancel()
        assert await first == "one" and await last == "three"
        assert gone.cancelled() and admission.num_active == 0

    run(work())
    assert "two runs" not in log and log.count("two closed") == 1


def test_a_turn_that_comes_as_its_client_leaves_goes_on_to_the_next() -> None:
    async def work() -> None:
        admission = Admission(num_active=1, max_waiting=9)
        turns = [admission._turn("a") for _ in range(3)]
        await turns[0].__aenter__()
        waiting = [asyncio.ensure_future(turn.__aenter__()) for turn in turns[1:]]
        await asyncio.sleep(0)
        await turns[0].__aexit__(None, None, None)  # the second has its turn, and does not know yet
        waiting[0].cancel()
        await asyncio.wait(waiting)
        assert waiting[0].cancelled() and not waiting[1].cancelled()
        await turns[2].__aexit__(None, None, None)
        assert admission.num_active == 0

    run(work())


def test_an_error_reaches_who_awaits_the_reply_and_frees_its_place() -> None:
    log: list[str] = []

    async def work() -> None:
        admission = Admission(num_active=1, max_waiting=9)
        with pytest.raises(InputError, match="expected this"):
            await read(admission, Reply("bad", log, error=InputError("expected this")), "a")
        assert await read(admission, Reply("good", log), "a") == "good"

    run(work())
    assert log == ["bad runs", "bad closed", "good runs", "good closed"]
