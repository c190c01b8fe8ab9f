# SPDX-License-Identifier: Apache-2.0
"""Decode and LoRA steps of the 270M on a GPU: ours on a backend, or transformers' and PEFT's; a process for each.

    python benchmarks/gpu.py decode gemmary-jax | gemmary-torch | transformers
    python benchmarks/gpu.py lora gemmary-jax | gemmary-torch | peft

In bfloat16, on the GPU that the backend finds. Decode is the time of 48 tokens after prompts of 16, of one sequence
and of 8 at once: ours from the engine with the logits brought to NumPy, theirs from `generate`, less a token. A LoRA
step is that of benchmarks/tune.py. Medians are printed, and stand in docs/numbers.md by hand: the machine with a GPU
was lent and had other versions than the tests. It ran an earlier text of this script; what needs no GPU of this one has
run on a CPU.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import tune
from decode import continued, transformers_model
from turns import backend_of

PROMPT, REPLY, SEQUENCES = 16, 48, (1, 8)
SYSTEMS = {
    "decode": ("gemmary-jax", "gemmary-torch", "transformers"),
    "lora": ("gemmary-jax", "gemmary-torch", "peft"),
}


def median_seconds(run: Callable[[], Any], *, warm_up: int, times: int) -> float:
    for _ in range(warm_up):
        run()
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def gemmary_replies() -> Iterator[float]:
    """For each number of sequences the seconds of a reply."""
    from gemmary.formats.checkpoint import open_checkpoint
    from gemmary.formats.locate import embedded_default
    from gemmary.generate.generator import Chunk
    from gemmary.generate.keras_engine import KerasEngine

    checkpoint = open_checkpoint(embedded_default())
    engine = KerasEngine(checkpoint, num_slots=max(SEQUENCES), max_length=1024, dtype="bfloat16")
    for count in SEQUENCES:
        prompts = [Chunk(slot=slot, start=0, ids=(5,) * PROMPT) for slot in range(count)]
        for chunk in prompts:
            engine.keep(chunk.slot, 0)
        engine.logits(prompts)
        steps = ([Chunk(slot=slot, start=at, ids=(5,)) for slot in range(count)] for at in range(PROMPT, 1024))

        def reply(steps: Any = steps) -> None:
            for step in islice(steps, REPLY):
                engine.logits(step)

        yield median_seconds(reply, warm_up=1, times=3)


def transformers_replies() -> Iterator[float]:
    model = transformers_model("bfloat16", "cuda").eval()
    for count in SEQUENCES:
        prompts = [[2] * PROMPT] * count
        long, short = (
            median_seconds(partial(continued, model, prompts, length), warm_up=1, times=3) for length in (REPLY + 1, 1)
        )
        yield long - short


def peak_bytes(backend: str) -> int:
    """The most memory of the GPU that was in use."""
    if backend == "jax":
        import jax

        return int(jax.local_devices()[0].memory_stats()["peak_bytes_in_use"])
    import torch

    return torch.cuda.max_memory_allocated()


def main() -> None:
    task, system = sys.argv[1:] if len(sys.argv) == 3 else ("", "")
    if system not in SYSTEMS.get(task, ()):
        known = ", ".join(f"{task} {each}" for task, systems in SYSTEMS.items() for each in systems)
        sys.exit(f"expected one of {known}, got {' '.join(sys.argv[1:]) or 'nothing'}")
    is_ours = tune.is_ours(system)
    if is_ours:
        from gemmary.api import runtime

        runtime("keras", backend_of(system))
    if task == "decode":
        for count, seconds in zip(SEQUENCES, gemmary_replies() if is_ours else transformers_replies(), strict=True):
            print(f"{count} at once: {count * REPLY / seconds:.0f} tokens/s", flush=True)
        return
    step = tune.gemmary("bfloat16") if is_ours else tune.peft("bfloat16", "cuda")
    ids = np.random.default_rng(0).integers(1000, 200_000, (tune.ROWS, tune.LENGTH), np.int32)
    seconds = median_seconds(partial(step, ids), warm_up=3, times=8)
    peak = peak_bytes(backend_of(system))
    print(f"{ids.size / seconds:.0f} tokens/s, {peak / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
