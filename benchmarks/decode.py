# SPDX-License-Identifier: Apache-2.0
"""Prefill and decode of Gemma 3 270M beside KerasHub and transformers, in turn, each in a process of its own.

    python benchmarks/decode.py --rounds 5 [--only gemmary-jax keras-hub-jax]

Greedy, one sequence, random prompts. Decode is the time of 64 new tokens less that of 16, prefill that of 512 tokens
and one new one. All systems compute the same sizes in the same precision; speed does not depend on the weights' values,
so peers run with random ones. Each process warms its shapes up first: compilation is not in the figures. Then all
take turns, one measurement each a round; ratios are medians of the rounds' own, so that a busy machine slows both.
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
from turns import ask, backend_of, start

Generate = Callable[[list[int], int], Any]  # a prompt and how many tokens to add
SYSTEMS = (
    "gemmary-jax",
    "keras-hub-jax",
    "gemmary-torch",
    "keras-hub-torch",
    "transformers",
    "gemmary-tensorflow",
    "gemmary-jax-bfloat16",
    "gemmary-torch-bfloat16",
    "transformers-bfloat16",
)
PEERS = {
    "gemmary-jax": ("keras-hub-jax",),
    "gemmary-torch": ("keras-hub-torch", "transformers"),
    "gemmary-jax-bfloat16": ("transformers-bfloat16",),
    "gemmary-torch-bfloat16": ("transformers-bfloat16",),
}
LONG, SHORT, PROMPT, PREFILL = 64, 16, 16, 512


def gemmary(backend: str, dtype: str) -> Generate:
    import gemmary

    generator = gemmary.load(engine="keras", backend=backend, dtype=dtype, max_length=1024, num_slots=1)

    def generate(prompt: list[int], count: int) -> Any:
        [reply] = generator.complete([gemmary.Request(prompt, max_tokens=count, ignore_stop_ids=True)])
        assert len(reply.ids) == count and reply.usage.cached_tokens <= 1
        return reply

    return generate


def keras_hub_model() -> Any:
    """KerasHub's model of the 270M's sizes, with random weights."""
    import keras_hub

    backbone = keras_hub.models.Gemma3Backbone(
        vocabulary_size=262_144,
        image_size=None,
        num_layers=18,
        num_query_heads=4,
        num_key_value_heads=1,
        hidden_dim=640,
        intermediate_dim=2048,
        head_dim=256,
        query_head_dim_normalize=True,
        use_query_key_norm=True,
        use_post_ffw_norm=True,
        use_post_attention_norm=True,
        sliding_window_size=512,
        use_sliding_window_attention=True,
        vision_encoder=None,
    )
    return keras_hub.models.Gemma3CausalLM(backbone=backbone, preprocessor=None)


def keras_hub() -> Generate:
    import keras

    model = keras_hub_model()
    model.compile(sampler="greedy")

    def generate(prompt: list[int], count: int) -> Any:
        size = len(prompt) + count
        ids, mask = np.zeros((1, size), np.int32), np.zeros((1, size), np.int32)
        ids[0, : len(prompt)], mask[0, : len(prompt)] = prompt, 1
        inputs = {"token_ids": keras.ops.convert_to_tensor(ids), "padding_mask": keras.ops.convert_to_tensor(mask)}
        return keras.ops.convert_to_numpy(model.make_generate_function()(inputs, stop_token_ids=None)["token_ids"])

    return generate


def transformers_model(dtype: str, device: str = "cpu") -> Any:
    """transformers' model of the 270M's sizes, with random weights."""
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=262_144,
        num_hidden_layers=18,
        hidden_size=640,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        intermediate_size=2048,
        sliding_window=512,
        max_position_embeddings=32_768,
    )
    return Gemma3ForCausalLM(config).to(device, getattr(torch, dtype))


def continued(model: Any, prompts: list[list[int]], count: int) -> Any:
    """Prompts of one length with what transformers' model adds to each, on the CPU."""
    import torch

    ids = torch.tensor(prompts, device=model.device)
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=count,
            max_new_tokens=count,
            pad_token_id=0,
        )
    assert out.shape[1] == ids.shape[1] + count
    return out.cpu()


def transformers(dtype: str) -> Generate:
    model = transformers_model(dtype).eval()
    return lambda prompt, count: continued(model, [prompt], count)


def build(system: str) -> Generate:
    dtype = "bfloat16" if system.endswith("bfloat16") else "float32"
    if system.startswith("transformers"):
        return transformers(dtype)
    return keras_hub() if system.startswith("keras-hub") else gemmary(backend_of(system), dtype)


def serve(system: str) -> None:
    """Warm up, then answer each line of standard input with one measurement."""
    generate, random = build(system), np.random.default_rng(0)

    def seconds(length: int, count: int) -> float:
        prompt = [2, *random.integers(1000, 200_000, length - 1).tolist()]
        start = time.perf_counter()
        generate(prompt, count)
        return time.perf_counter() - start

    def measure() -> dict[str, float]:
        decode = seconds(PROMPT, LONG) - seconds(PROMPT, SHORT)
        return {"decode": (LONG - SHORT) / decode, "prefill": PREFILL / seconds(PREFILL, 1)}

    for _ in range(2):  # the first compiles, the second may trace
        measure()
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps(measure()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=SYSTEMS, default=SYSTEMS)
    parser.add_argument("--serve", choices=SYSTEMS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    children = {system: start(__file__, system) for system in options.only}
    found: dict[str, list[dict[str, float]]] = {system: [] for system in options.only}
    for number in range(options.rounds):
        for system, child in children.items():
            found[system].append(ask(child))
            print(number, system, found[system][-1], flush=True)
    for child in children.values():
        child.terminate()
    rows = [row(system, found) for system in options.only]
    columns = ("system", "decode, tokens/s", "prefill, tokens/s", "over", "decode, times", "prefill, times")
    only = "" if tuple(options.only) == SYSTEMS else f" --only {' '.join(options.only)}"
    record("decode", columns, rows, command=f"python benchmarks/decode.py --rounds {options.rounds}{only}")


def row(system: str, found: dict[str, list[dict[str, float]]]) -> tuple[str, ...]:
    """A line of the table: a system's medians, and the medians of its ratios over the peers it stands beside."""
    kinds = ("decode", "prefill")
    medians = (f"{statistics.median(run[kind] for run in found[system]):.1f}" for kind in kinds)
    peers = [peer for peer in PEERS.get(system, ()) if peer in found]
    ratios = [
        " / ".join(
            f"{statistics.median(a[k] / b[k] for a, b in zip(found[system], found[p], strict=True)):.2f}" for p in peers
        )
        for k in kinds
    ]
    return (system, *medians, " / ".join(peers), *ratios)


if __name__ == "__main__":
    main()
