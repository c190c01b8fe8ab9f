# SPDX-License-Identifier: Apache-2.0
"""Are our answers transformers'? The model card's four benchmarks, items from all over each, answer by answer.

    python benchmarks/choices.py --data FOLDER --items 200 [--engine native] [--only card-arc-easy]

Both are asked lm-eval's own requests. transformers computes with the float32 values of the embedded Q4_K_M file; our
native engine with its blocks and int8 activations, the Keras engine with the same values. An answer is the choice that
the benchmark's metric takes, or the text of the reply. Where choices differ it is told how near the best two were.
"""

import argparse
import copy
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from record import record

from gemmary.api import load
from gemmary.evaluate.harness import GeneratorLM, spread, tasks_of
from gemmary.evaluate.replies import Replies
from gemmary.evaluate.tasks import GROUPS
from gemmary.formats.checkpoint import open_checkpoint, write_checkpoint
from gemmary.formats.locate import embedded_default


class Transformers(HFLM):
    """lm-eval's own, but what the choices of a question have in common runs once: 200 items in minutes."""

    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
        found, before, past = [], None, None
        with torch.inference_mode():
            for _, context, continuation in requests:
                if context != before:
                    given = torch.tensor([context[:-1]])
                    before, past = context, self.model(given, use_cache=True, logits_to_keep=1).past_key_values
                ids = torch.tensor([[context[-1], *continuation[:-1]]])
                logits = self.model(ids, past_key_values=copy.deepcopy(past)).logits[0].float()
                wanted = torch.tensor(continuation)
                values = logits.log_softmax(-1)[torch.arange(len(wanted)), wanted]
                found.append((float(values.sum()), bool((logits.argmax(-1) == wanted).all())))
        return found


def answers(model: Any, task: Any, metric: str) -> list[tuple[Any, float]]:
    """Each item's answer, and by how much the best choice leads the next."""
    instances = sorted(task.instances, key=lambda each: (each.doc_id, each.idx))
    if instances[0].request_type == "generate_until":
        return [(text.strip(), 0.0) for text in model.generate_until(instances)]
    values: dict[int, list[float]] = defaultdict(list)
    for request, (log_prob, _) in zip(instances, model.loglikelihood(instances), strict=True):
        length = len(request.args[1].lstrip()) if metric == "acc_norm" else 1
        values[request.doc_id].append(log_prob / length)
    best = []
    for at in sorted(values):
        first, second = sorted(values[at], reverse=True)[:2]
        best.append((values[at].index(first), first - second))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--engine", choices=("native", "keras"), default="native")
    parser.add_argument("--only", nargs="+", choices=sorted(GROUPS["card"]), default=sorted(GROUPS["card"]))
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp()) / "float32"
    write_checkpoint(open_checkpoint(embedded_default()), folder, format="safetensors", dtype="float32")
    theirs = Transformers(pretrained=str(folder), device="cpu", dtype="float32", batch_size=1, add_bos_token=True)
    ours = GeneratorLM(load(engine=options.engine, max_length=4096, num_slots=4), Replies(Path(":memory:")))
    rows = []
    for name in options.only:
        benchmark = GROUPS["card"][name]
        [task] = tasks_of(benchmark, data=options.data).values()
        task.build_all_requests(samples=spread(len(task.eval_docs), options.items))
        pairs = [*zip(answers(ours, task, benchmark.metric), answers(theirs, task, benchmark.metric), strict=True)]
        others = [max(one[1], other[1]) for one, other in pairs if one[0] != other[0]]
        rows.append([benchmark.title, f"{len(pairs) - len(others)} of {len(pairs)}", f"{max(others, default=0):.3f}"])
        print(rows[-1], flush=True)
    arguments = ["FOLDER" if each == str(options.data) else each for each in sys.argv[1:]]
    columns = (f"{options.engine} engine", "answers as transformers'", "largest lead where they differ, nats")
    record("choices", columns, rows, command=" ".join(["python benchmarks/choices.py", *arguments]))


if __name__ == "__main__":
    main()
