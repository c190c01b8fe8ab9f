# SPDX-License-Identifier: Apache-2.0
from gemmary.base.config import PRESETS, GemmaConfig
from gemmary.generate.generator import Chunk
from gemmary.generate.rings import Rings


def rings(config: GemmaConfig) -> Rings:
    return Rings(config, num_slots=2, max_length=2048, chunk_length=256)


def test_a_slot_taken_back_twice_is_judged_by_the_furthest_it_ran() -> None:
    slots = rings(PRESETS["gemma-3-270m"])  # windows of 512, rings of 768
    slots.ran(Chunk(slot=0, start=0, ids=(2,) * 1000))
    slots.ran(Chunk(slot=0, start=800, ids=(2,) * 10))
    assert [slots.keep(0, length) for length in (810, 744, 743)] == [810, 744, 0]


def test_a_new_sequence_begins_at_zero_and_slots_are_their_own() -> None:
    slots = rings(PRESETS["gemma-3-270m"])
    slots.ran(Chunk(slot=0, start=0, ids=(2,) * 2000))
    slots.ran(Chunk(slot=0, start=0, ids=(2,) * 768))  # fits the ring: nothing was overwritten
    assert [slots.keep(0, 1), slots.keep(1, 0)] == [1, 0]


def test_without_windows_everything_is_kept() -> None:
    slots = rings(PRESETS["gemma-2b"])
    slots.ran(Chunk(slot=1, start=0, ids=(2,) * 2048))
    assert slots.keep(1, 1) == 1
