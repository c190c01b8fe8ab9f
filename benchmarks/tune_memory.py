# SPDX-License-Identifier: Apache-2.0
"""The most memory that tuning takes where memory is short: everything of the 270M, and LoRA on a model of 2B's shape.

    python benchmarks/tune_memory.py [--backend jax] [--only full-adafactor lora-2b]

Each case is a process that loads the model, takes two steps on random tokens, all of them learned, and hands over its
state as a checkpoint would be saved: weights, gradients, optimizer, activations and compiling are all in the figure.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from record import record
from shaped import write_shaped
from tune import all_learned

from gemmary.base.config import PRESETS
from gemmary.formats.locate import embedded_default
from gemmary.generate.process import peak_bytes

LENGTH = 512
CASES = {"full-adamw": 4, "full-adafactor": 4, "lora-2b": 1}  # rows of a step


def measured(case: str, folder: Path) -> dict[str, float]:
    from gemmary.formats.checkpoint import open_checkpoint
    from gemmary.train.optimizer import Adafactor, AdamW
    from gemmary.train.parameters import Full, LoRA
    from gemmary.train.trainer import Trainer

    path = folder / "2b.gguf" if case == "lora-2b" else embedded_default()
    learned = LoRA(rank=16) if case == "lora-2b" else Full()
    optimizer = Adafactor() if case == "full-adafactor" else AdamW()
    checkpoint = open_checkpoint(path)
    trainer = Trainer(checkpoint, parameters=learned, optimizer=optimizer)
    ids = np.random.default_rng(1).integers(5, checkpoint.config.vocab_size, (CASES[case], LENGTH), np.int32)
    batch = all_learned(ids)
    for _ in range(2):
        began = time.perf_counter()
        trainer.step(batch, rate=1e-4)
    seconds = time.perf_counter() - began
    state = trainer.state  # held with the rest, as while a checkpoint is written
    peak = peak_bytes()
    del state
    return {"memory": peak, "speed": ids.size / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="jax", choices=("jax", "torch"))
    parser.add_argument("--only", nargs="+", choices=tuple(CASES), default=list(CASES))
    parser.add_argument("--one", nargs=2, metavar=("CASE", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        case, folder = arguments.one
        print(json.dumps(measured(case, Path(folder))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        if "lora-2b" in arguments.only:
            write_shaped(Path(folder) / "2b.gguf", PRESETS["gemma-2b"], embedded_default())
        for case in arguments.only:
            command = [sys.executable, __file__, "--one", case, folder]
            environment = {**os.environ, "KERAS_BACKEND": arguments.backend}
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            rows.append((case, f"{CASES[case]} x {LENGTH}", f"{found['memory'] / 1e9:.2f}", f"{found['speed']:.0f}"))
            print(rows[-1], flush=True)
    columns = ("case", "tokens a step", "peak, GB", "tokens/s")
    record("tune_memory", columns, rows, command=" ".join(["python benchmarks/tune_memory.py", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
