# SPDX-License-Identifier: Apache-2.0
"""What the ring caches of an engine's slots still hold, by the positions that were run: the same for every engine."""

from gemmary.base.config import GemmaConfig
from gemmary.generate.generator import Chunk


class Rings:
    """How far each slot has run, and what of it a new sequence may go on from.

    >>> from gemmary.base.config import PRESETS
    >>> rings = Rings(PRESETS["gemma-3-270m"], num_slots=1, max_length=2048, chunk_length=256)  # windows of 512
    >>> rings.ran(Chunk(slot=0, start=0, ids=(2,) * 1000))
    >>> [rings.keep(0, length) for length in (1000, 744, 743)]
    [1000, 744, 0]
    """

    def __init__(self, config: GemmaConfig, *, num_slots: int, max_length: int, chunk_length: int) -> None:
        self._rings = tuple(zip(config.windows, config.cache_lengths(max_length, chunk_length), strict=True))
        self._ends = [0] * num_slots  # the furthest end of each slot's sequence, which stays when it is taken back

    def ran(self, chunk: Chunk) -> None:
        """Record a chunk; one that starts at 0 begins a new sequence."""
        known = self._ends[chunk.slot] if chunk.start else 0
        self._ends[chunk.slot] = max(known, chunk.end)

    def keep(self, slot: int, length: int) -> int:
        """Of a slot's first `length` positions, how many a new sequence may go on from: `length`, or 0.

        A layer with a window has forgotten what lies too far before the furthest position that the slot ran, even where
        the sequence was taken back since: what was written then stands in the place of what is older.
        """
        end = self._ends[slot]
        fits = all(end <= ring or (window and end - length <= ring - window) for window, ring in self._rings)
        return length if fits else 0
