# SPDX-License-Identifier: Apache-2.0
"""How far a verb is, on a terminal."""

import sys
import time
from collections.abc import Callable

from gemmary.cli import options


class Progress:
    """How far, how fast, how long still: one line on a terminal's stderr, drawn anew ten times a second.

    >>> progress = Progress(2_000_000, clock=iter([0.0, 1.0, 2.0]).__next__)
    >>> progress.add(500_000)
    >>> progress.line()
    '25%  0.5 of 2 million parameters  0.2 a second  6 s left'
    """

    def __init__(
        self,
        total: int,
        clock: Callable[[], float] = time.perf_counter,
        *,
        unit: str = "million parameters",
        scale: float = 1e6,
    ) -> None:
        self._total, self._done, self._clock = total, 0, clock
        self._unit, self._scale = unit, scale
        self._began = self._drawn = clock()

    def add(self, count: int) -> None:
        """So many more are done.

        >>> Progress(10).add(1)
        """
        self._done = min(self._done + count, self._total)
        now = self._clock()
        if sys.stderr.isatty() and now - self._drawn >= 0.1:
            self._drawn = now
            print(f"\r{self.line()}\033[K", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Take the line away.

        >>> Progress(10).clear()
        """
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def line(self) -> str:
        """What is drawn.

        >>> Progress(1_000_000, clock=iter([0.0, 1.0]).__next__).line()
        '0%  0 of 1 million parameters'
        """
        seconds = self._clock() - self._began
        done, total = self._done / self._scale, self._total / self._scale
        line = f"{self._done / self._total:.0%}  {done:.3g} of {total:.3g} {self._unit}"
        if not self._done or not seconds:
            return line
        rate = self._done / seconds
        return f"{line}  {rate / self._scale:.1g} a second  {(self._total - self._done) / rate:.0f} s left"

    def finish(self, what: str) -> None:
        """Say what has come of it.

        >>> Progress(10).finish("new.gguf: 1 MB")
        """
        self.clear()
        options.note(f"{what} in {self._clock() - self._began:.1f} s")
