# SPDX-License-Identifier: Apache-2.0
"""LoRA steps of Gemma 3 270M beside PEFT and KerasHub: tokens a second and peak memory, each system in its process.

    python benchmarks/tune.py --steps 3 [--only gemmary-jax peft-float32]

Rank 16 on all linear layers, 4 rows of 512 random tokens, all of them learned, AdamW. Speed does not depend on the
values, so peers run with random weights. A first step of each compiles and does not count; then the systems take turns,
a step each a round. A name says the precision of activations; Gemmary holds its frozen weights in bfloat16 in either.
The memory is the most that a process held, loading and compiling included; few systems fit beside each other. KerasHub
adapts query and value projections alone, as its LoRA does.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from record import record
from turns import ask, start

from gemmary.generate.process import peak_bytes

Step = Callable[[np.ndarray[Any, Any]], Any]
SYSTEMS = (
    "gemmary-jax",
    "gemmary-jax-bfloat16",
    "gemmary-torch",
    "gemmary-torch-bfloat16",
    "peft-float32",
    "peft-bfloat16",
    "keras-hub-jax",
    "keras-hub-jax-bfloat16",
    "keras-hub-torch-bfloat16",
)
ROWS, LENGTH, RANK = 4, 512, 16


def gemmary(dtype: str) -> Step:
    from gemmary.api import runtime

    runtime("keras")
    from gemmary.formats.checkpoint import open_checkpoint
    from gemmary.formats.locate import embedded_default
    from gemmary.train.parameters import LoRA
    from gemmary.train.trainer import Trainer

    trainer = Trainer(open_checkpoint(embedded_default()), parameters=LoRA(rank=RANK), dtype=dtype)

    return lambda ids: trainer.step(all_learned(ids), rate=1e-4)


def all_learned(ids: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """A batch of whole rows, each of whose tokens is learned but its first."""
    at, length = np.arange(ids.size, dtype=np.int32), ids.shape[1]
    return {
        "ids": ids,
        "segments": np.ones_like(ids),
        "positions": np.broadcast_to(np.arange(length, dtype=np.int32), ids.shape).copy(),
        "at": at,
        "targets": ids.ravel()[(at + 1) % ids.size],
        "weights": np.float32((at + 1) % length > 0),
    }


def peft(dtype: str, device: str = "cpu") -> Step:
    import torch
    from decode import transformers_model
    from peft import LoraConfig, get_peft_model

    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=RANK, lora_alpha=32, target_modules=linear)
    model = get_peft_model(transformers_model(dtype, device), config).to(device)
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-4)

    def step(ids: np.ndarray[Any, Any]) -> Any:
        tokens = torch.from_numpy(ids.astype(np.int64)).to(device)
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()  # a GPU is done by then

    return step


def keras_hub(dtype: str) -> Step:
    import keras
    from decode import keras_hub_model

    keras.config.set_floatx(dtype)
    model = keras_hub_model()
    model.backbone.enable_lora(RANK)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.AdamW(1e-4), loss=loss, sampler="greedy")

    def step(ids: np.ndarray[Any, Any]) -> Any:
        inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
        return model.train_on_batch(inputs, np.roll(ids, -1, axis=1))

    return step


MAKERS = {"gemmary": gemmary, "peft": peft, "keras-hub": keras_hub}


def build(system: str) -> Step:
    make = next(make for name, make in MAKERS.items() if system.startswith(name))
    return make("bfloat16" if system.endswith("bfloat16") else "float32")


def is_ours(system: str) -> bool:
    return system.startswith("gemmary")


def serve(system: str) -> None:
    """Take a step to compile, then one for each line of standard input."""
    step, random = build(system), np.random.default_rng(0)

    def measure() -> dict[str, float]:
        ids = random.integers(1000, 200_000, (ROWS, LENGTH), np.int32)
        began = time.perf_counter()
        step(ids)
        return {"rate": ROWS * LENGTH / (time.perf_counter() - began), "peak": peak_bytes()}

    measure()
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps(measure()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=SYSTEMS, default=SYSTEMS)
    parser.add_argument("--serve", choices=SYSTEMS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    children = {system: start(__file__, system) for system in options.only}
    found: dict[str, list[dict[str, float]]] = {system: [] for system in options.only}
    for number in range(options.steps):
        for system, child in children.items():
            found[system].append(ask(child))
            print(number, system, found[system][-1], flush=True)
    for child in children.values():
        child.terminate()
    peers = [system for system in options.only if not is_ours(system)]
    rows = [row(system, peers, found) for system in options.only]
    columns = ("system", "tokens/s", "peak, GB", *(f"over {peer}" for peer in peers))
    record("tune", columns, rows, command=" ".join(["python benchmarks/tune.py", *sys.argv[1:]]))


def row(system: str, peers: list[str], found: dict[str, list[dict[str, float]]]) -> tuple[str, ...]:
    """A line of the table: medians, and those of the rounds' ratios to each peer."""
    rate = statistics.median(each["rate"] for each in found[system])
    peak = max(each["peak"] for each in found[system])
    ratios = [
        f"{statistics.median(a['rate'] / b['rate'] for a, b in zip(found[system], found[peer], strict=True)):.2f}"
        if is_ours(system)
        else ""
        for peer in peers
    ]
    return (system, f"{rate:.1f}", f"{peak / 1e9:.2f}", *ratios)


if __name__ == "__main__":
    main()
