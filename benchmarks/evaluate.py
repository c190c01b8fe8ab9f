# SPDX-License-Identifier: Apache-2.0
"""HellaSwag with 10 shots on Gemma 3 270M beside lm-eval's own `hf` model: items a second, and the same choices?

    python benchmarks/evaluate.py --data FOLDER --items 200 [--portion 10] [--only gemmary-native lm-eval-hf]

FOLDER holds hellaswag/validation.jsonl. lm-eval makes the requests, the same for all: each item has shots of its own.
Systems take turns, a portion of the items each a round; a first portion of each warms up and does not count. `hf` and
the Keras engine compute with the float32 values of the embedded Q4_K_M file, the native engine with its blocks.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import record
from turns import ask, start

SYSTEMS = ("gemmary-native", "gemmary-jax", "lm-eval-hf")


def build(system: str) -> Any:
    from gemmary.api import load
    from gemmary.evaluate.harness import GeneratorLM
    from gemmary.evaluate.replies import Replies
    from gemmary.formats.checkpoint import open_checkpoint, write_checkpoint
    from gemmary.formats.locate import embedded_default

    if system == "lm-eval-hf":
        from lm_eval.models.huggingface import HFLM

        folder = Path(tempfile.mkdtemp()) / "float32"
        write_checkpoint(open_checkpoint(embedded_default()), folder, format="safetensors", dtype="float32")
        return HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=1, add_bos_token=True)
    engine = "native" if system == "gemmary-native" else "keras"
    return GeneratorLM(load(engine=engine, max_length=4096, num_slots=4), Replies(Path(":memory:")))


def serve(system: str, data: Path, items: int, portion: int) -> None:
    """Judge a portion to warm up, then the next one for each line of standard input."""
    from gemmary.evaluate.harness import tasks_of
    from gemmary.evaluate.tasks import GROUPS

    model = build(system)
    [task] = tasks_of(GROUPS["card"]["card-hellaswag"], data=data).values()
    task.build_all_requests(limit=items + portion)

    def measure(first: int) -> dict[str, Any]:
        requests = [each for each in task.instances if first <= each.doc_id < first + portion]
        began = time.perf_counter()
        found = model.loglikelihood(requests)
        seconds = time.perf_counter() - began
        best: dict[int, tuple[float, int]] = {}
        for request, (log_prob, _) in zip(requests, found, strict=True):
            value = log_prob / len(request.doc["choices"][request.idx])
            best[request.doc_id] = max(best.get(request.doc_id, (-1e9, 0)), (value, request.idx))
        return {"rate": portion / seconds, "choices": [best[at][1] for at in sorted(best)]}

    measure(items)
    print("ready", flush=True)
    for first, _ in zip(range(0, items, portion), sys.stdin, strict=False):
        print(json.dumps(measure(first)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--portion", type=int, default=10)
    parser.add_argument("--only", nargs="+", choices=SYSTEMS, default=SYSTEMS)
    parser.add_argument("--serve", choices=SYSTEMS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.data, options.items, options.portion)
        return
    how = ("--data", str(options.data), "--items", str(options.items), "--portion", str(options.portion))
    children = {system: start(__file__, system, *how) for system in options.only}
    found: dict[str, list[Any]] = {system: [] for system in options.only}
    for number in range(0, options.items, options.portion):
        for system, child in children.items():
            found[system].append(ask(child))
            print(number, system, found[system][-1], flush=True)
    for child in children.values():
        child.terminate()
    peer = options.only[-1]
    rows = [row(system, found[system], found[peer]) for system in options.only]
    columns = ("system", "items/s", f"over {peer}", f"choices as {peer}'s")
    arguments = ["FOLDER" if each == str(options.data) else each for each in sys.argv[1:]]
    record("evaluate", columns, rows, command=" ".join(["python benchmarks/evaluate.py", *arguments]))


def row(system: str, found: list[Any], theirs: list[Any]) -> tuple[str, ...]:
    """A line of the table: the median rate, that of the rounds' ratios, and how often the choice is the same."""
    ratio = statistics.median(one["rate"] / other["rate"] for one, other in zip(found, theirs, strict=True))
    ours, peers = ([choice for each in rounds for choice in each["choices"]] for rounds in (found, theirs))
    pairs = list(zip(ours, peers, strict=True))
    same = sum(a == b for a, b in pairs)
    rate = statistics.median(each["rate"] for each in found)
    return (system, f"{rate:.3f}", f"{ratio:.1f}", f"{same} of {len(pairs)}")


if __name__ == "__main__":
    main()
