# SPDX-License-Identifier: Apache-2.0
"""Decode and LoRA steps of Gemma 3 270M's sizes on a GPU, beside transformers and PEFT, each in a process of its own.

    KERAS_BACKEND=jax python benchmarks/gpu.py gemmary-decode
    python benchmarks/gpu.py transformers-decode

Random weights, bfloat16, the GPU that a backend finds. Decode is the time of 48 tokens after prompts of 16, of one
sequence and of 8 at once: ours from the engine with the logits brought to NumPy, theirs from `generate`, less a token.
A LoRA step is that of benchmarks/tune.py. Each prints medians of its own process; docs/numbers.md has them by hand,
because the machines with a GPU that this ran on are lent and have other versions than the tests.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from tune import LENGTH, RANK, ROWS, all_learned

import gemmary
from gemmary.base.config import GemmaConfig
from gemmary.formats.content import Checkpoint
from gemmary.formats.tensors import weights

CONFIG: GemmaConfig = gemmary.PRESETS["gemma-3-270m"]
PROMPT, REPLY, SEQUENCES = 16, 48, (1, 8)


def checkpoint() -> Checkpoint:
    """Random weights of usual sizes."""
    random, arrays = np.random.default_rng(7), {}
    for path, row, _ in weights(CONFIG):
        array = random.standard_normal(row.shape(CONFIG), np.float32)
        array *= np.float32(0.3 if row.is_norm else array.shape[-1] ** -0.5)
        arrays[path] = array
    tensors = {path: (lambda array=array: array) for path, array in arrays.items()}
    return Checkpoint(config=CONFIG, tensors=tensors, vocabulary=None)


def median_seconds(run: Callable[[], Any], *, warm_up: int, times: int) -> float:
    for _ in range(warm_up):
        run()
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def gemmary_decode() -> None:
    from gemmary.generate.generator import Chunk
    from gemmary.generate.keras_engine import KerasEngine

    engine = KerasEngine(checkpoint(), num_slots=max(SEQUENCES), max_length=1024, dtype="bfloat16")
    for count in SEQUENCES:
        prompts = [Chunk(slot=slot, start=0, ids=(5,) * PROMPT) for slot in range(count)]
        for chunk in prompts:
            engine.keep(chunk.slot, 0)
        engine.logits(prompts)
        steps = ([Chunk(slot=slot, start=at, ids=(5,)) for slot in range(count)] for at in range(PROMPT, 1024))

        def reply(steps: Any = steps) -> None:
            for step in islice(steps, REPLY):
                engine.logits(step)

        seconds = median_seconds(reply, warm_up=1, times=3)
        print(f"{count} at once: {count * REPLY / seconds:.0f} tokens/s", flush=True)


def transformers_model() -> Any:
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    sizes = {"hidden_size": 640, "intermediate_size": 2048, "head_dim": 256, "vocab_size": 262_144}
    heads = {"num_hidden_layers": 18, "num_attention_heads": 4, "num_key_value_heads": 1, "sliding_window": 512}
    return Gemma3ForCausalLM(Gemma3TextConfig(**sizes, **heads)).to("cuda", torch.bfloat16)


def transformers_decode() -> None:
    import torch

    model = transformers_model().eval()
    for count in SEQUENCES:
        ids = torch.randint(10, 1000, (count, PROMPT), device="cuda")

        def generate(length: int, ids: Any = ids) -> None:
            with torch.inference_mode():
                model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=False,
                    min_new_tokens=length,
                    max_new_tokens=length,
                    pad_token_id=0,
                    eos_token_id=None,
                )
            torch.cuda.synchronize()

        long, short = (median_seconds(partial(generate, each), warm_up=1, times=3) for each in (REPLY + 1, 1))
        print(f"{count} at once: {count * REPLY / (long - short):.0f} tokens/s", flush=True)


def batch() -> dict[str, Any]:
    return all_learned(np.random.default_rng(0).integers(1000, 200_000, (ROWS, LENGTH), np.int32))


def gemmary_lora() -> None:
    import keras

    from gemmary.train.parameters import LoRA
    from gemmary.train.trainer import Trainer

    trainer, given = Trainer(checkpoint(), parameters=LoRA(rank=RANK), dtype="bfloat16"), batch()
    seconds = median_seconds(lambda: trainer.step(given, rate=1e-4), warm_up=3, times=8)
    if keras.backend.backend() == "torch":
        import torch

        peak = torch.cuda.max_memory_allocated()
    else:
        import jax

        peak = jax.local_devices()[0].memory_stats()["peak_bytes_in_use"]
    print(f"{ROWS * LENGTH / seconds:.0f} tokens/s, {peak / 1e9:.2f} GB")


def peft_lora() -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(transformers_model(), LoraConfig(r=RANK, lora_alpha=32, target_modules=linear)).cuda()
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-4)
    tokens = torch.from_numpy(batch()["ids"].astype(np.int64)).cuda()

    def step() -> None:
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()

    seconds = median_seconds(step, warm_up=3, times=8)
    print(f"{ROWS * LENGTH / seconds:.0f} tokens/s, {torch.cuda.max_memory_allocated() / 1e9:.2f} GB")


RUNS = {
    "gemmary-decode": gemmary_decode,
    "transformers-decode": transformers_decode,
    "gemmary-lora": gemmary_lora,
    "peft-lora": peft_lora,
}

if __name__ == "__main__":
    if "gemmary" in " ".join(sys.argv) and os.environ.get("KERAS_BACKEND") not in ("jax", "torch"):
        sys.exit("expected KERAS_BACKEND=jax or KERAS_BACKEND=torch")
    if sys.argv[1:2] == [] or sys.argv[1] not in RUNS:
        sys.exit(f"expected one of {', '.join(RUNS)}, got {' '.join(sys.argv[1:]) or 'nothing'}")
    RUNS[sys.argv[1]]()
