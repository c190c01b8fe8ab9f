# SPDX-License-Identifier: Apache-2.0
"""Make the golden: a model of 250,000 parameters that knows three texts by heart, and what it must say.

    KERAS_BACKEND=jax python tests/golden/make.py

It writes `model/` (a Hugging Face folder in bfloat16) and `expected.json` beside this file. Whatever runs or stores a
Gemma is then held to the same words: first and second token stand so far apart that no rounding changes one.
"""

import json
import shutil
from pathlib import Path

import keras
import numpy as np

from gemmary.base.config import GemmaConfig
from gemmary.formats.checkpoint import Checkpoint, open_checkpoint, write_checkpoint
from gemmary.generate.batched import BatchedGenerator
from gemmary.generate.generator import Chunk
from gemmary.generate.keras_engine import KerasEngine
from gemmary.generate.request import Request
from gemmary.model.keras_model import Gemma
from gemmary.text.tokenizer import Tokenizer
from gemmary.text.vocabulary import learn

HERE = Path(__file__).parent
TEXTS = (
    "A gem is cut in two steps. First the stone is sawn along its grain, where it is weak; then each face is ground "
    "until light that enters from above is thrown back at the eye. A good cutter loses half of the stone and doubles "
    "what the rest is worth.",
    "In the year 1912 a lighthouse keeper wrote down 365 sunsets, one a day, with a number from 0 to 9 for how red "
    "they were. Nobody asked him to. The 9s came after fires on the mainland, and that is how we know when they were.",
    "def gem(words):\n    for word in words:\n        if word.startswith('gem'):\n"
    "            yield word  # naïve, but ⟡\n",
)
PROMPTS = ("A gem is cut", "In the year 1912", "def gem(words):")
CONFIG = GemmaConfig(
    vocab_size=512,
    num_layers=6,
    model_dim=64,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    mlp_dim=96,
    max_length=512,
    query_scale=32**-0.5,
    rope_base=1_000_000.0,
    window_pattern=(*(16,) * 5, None),
    post_norm=True,
    qk_norm=True,
)


def main() -> None:
    keras.utils.set_random_seed(7)
    vocabulary = learn(TEXTS * 20, 512)
    tokenizer = Tokenizer(vocabulary)
    model = Gemma(CONFIG)
    train(model, [[*tokenizer.prompt(text), tokenizer.eos_id] for text in TEXTS])
    tensors = {path: (lambda value=value: np.asarray(value)) for path, value in model.weight_table.items()}
    shutil.rmtree(HERE / "model", ignore_errors=True)
    made = Checkpoint(config=CONFIG, tensors=tensors, vocabulary=vocabulary)
    write_checkpoint(made, HERE / "model", format="safetensors", dtype="bfloat16")
    expected = [expect(prompt) for prompt in PROMPTS]
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", "utf-8")


def train(model: Gemma, rows: list[list[int]], steps: int = 600) -> None:
    """Next-token prediction on the same rows until they are known; weights are rounded to bfloat16 at the end."""
    length = max(map(len, rows))
    ids = np.zeros((len(rows), length), np.int32)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = tokens
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)
    rate = keras.optimizers.schedules.CosineDecay(0.0, steps, warmup_target=3e-3, warmup_steps=50)
    model.compile(optimizer=keras.optimizers.Adam(rate, clipnorm=1.0), loss=loss)
    history = model.fit(ids[:, :-1], ids[:, 1:], epochs=steps, batch_size=len(rows), verbose=0)
    print(f"loss {history.history['loss'][0]:.3f} -> {history.history['loss'][-1]:.5f}")


def expect(prompt: str) -> dict[str, object]:
    """What the written model says after a prompt, by how much each token wins, and its logits after the prompt."""
    checkpoint = open_checkpoint(HERE / "model")
    assert checkpoint.vocabulary is not None
    tokenizer = Tokenizer(checkpoint.vocabulary)
    engine = KerasEngine(checkpoint, max_length=256, chunk_length=256)
    reply = BatchedGenerator(engine, tokenizer).complete([Request(prompt, max_tokens=64)])[0]
    ids, margins, logits = tokenizer.prompt(prompt), [], []
    for token in reply.ids:
        logits.append(engine.logits([Chunk(slot=0, start=0, ids=tuple(ids))])[0])
        second, first = np.sort(logits[-1])[-2:]
        margins.append(float(first - second))
        ids.append(token)
    print(f"{prompt!r} -> {reply.text!r}, least margin {min(margins):.2f}")
    return {
        "prompt": prompt,
        "text": reply.text,
        "ids": list(reply.ids),
        "least_margin": round(min(margins), 3),
        "logits": [round(float(value), 5) for value in logits[0]],
    }


if __name__ == "__main__":
    main()
