# SPDX-License-Identifier: Apache-2.0
"""lm-eval over a Generator: its tasks ask, our engines answer, what was answered is kept.

    Benchmark ─► lm-eval's tasks ─► requests ─► GeneratorLM ─► Generator.score / complete
                      │                              └─► Replies on the disk
                      └─► one value per item ─► Measured: mean, standard error, 95% interval

BOS stands before every request exactly once. What requests have in common is computed once, by Generator.score.
"""

import fnmatch
import logging
import math
import time
from collections.abc import Callable, Mapping, Set
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lm_eval.tasks
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate as ask_all
from lm_eval.tasks import TaskManager

from gemmary.base.errors import FileError, InputError
from gemmary.evaluate import local
from gemmary.evaluate.programs import CODE_TASKS
from gemmary.evaluate.replies import Replies
from gemmary.evaluate.report import Measured
from gemmary.evaluate.tasks import Benchmark
from gemmary.generate.perplexity import windows
from gemmary.generate.request import Request, Sampling

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from gemmary.generate.generator import Generator

_TASKS = Path(lm_eval.tasks.__file__).parent
_FOLDERS = (
    *("agieval", "arc", "bbh/cot_fewshot", "bbq", "commonsense_qa", "crows_pairs", "gsm8k", "hellaswag"),
    *("minerva_math", "mmlu/default", "nq_open", "openbookqa", "piqa", "siqa", "super_glue/boolq", "toxigen"),
    *("triviaqa", "truthfulqa", "winogender", "winogrande"),
)
_PORTION = 64  # requests that are answered and kept together
_MAX_TOKENS = 256  # of a reply, unless the task says; lm-eval's own default
_FEWSHOT_SEED = 1234  # lm-eval's own


class GeneratorLM(LM):  # type: ignore[misc]
    """A Generator as lm-eval's model. What does not fit in the context is not cut: it is noted, and its item is wrong.

    >>> from gemmary.generate.scripted import ScriptedGenerator
    >>> model = GeneratorLM(ScriptedGenerator({"capital of France": "Paris."}), Replies(Path(":memory:")))
    >>> from lm_eval.api.instance import Instance
    >>> asked = Instance("generate_until", {}, ("The capital of France is", {"until": ["."]}), 0)
    >>> model.generate_until([asked]), model.num_asked, model.num_kept
    (['Paris'], 1, 0)
    >>> model.generate_until([asked]), model.num_asked, model.num_kept
    (['Paris'], 1, 1)
    """

    def __init__(
        self, generator: "Generator", replies: Replies, tick: Callable[[int, int], None] = lambda done, total: None
    ) -> None:
        super().__init__()
        self._generator, self._replies, self._tick = generator, replies, tick
        self.num_asked = 0  # requests that the model answered
        self.num_kept = 0  # that had been answered before
        self.too_long: set[tuple[str | None, int | None]] = set()  # tasks and items that did not fit

    def loglikelihood(self, requests: "list[Instance]") -> list[tuple[float, bool]]:
        """The log-probability of each continuation after its context, and whether it is the greedy one."""
        return [(float(one[0]), bool(one[1])) if one else (-1e9, False) for one in self._answered("score", requests)]

    def loglikelihood_rolling(self, requests: "list[Instance]") -> list[float]:
        """The log-probability of each text, in windows of the context's length."""
        return [float(one) for one in self._answered("roll", requests)]

    def generate_until(self, requests: "list[Instance]") -> list[str]:
        """The replies, without the strings that end them."""
        return [str(one or "") for one in self._answered("reply", requests)]

    def _answered(self, kind: str, requests: "list[Instance]") -> list[Any]:
        """Answers from the disk, and where there is none from the model, a portion at a time; none for what is long."""
        answer = {"score": self._score, "roll": self._roll, "reply": self._reply}[kind]
        asked = [request.args for request in requests]
        found = [self._replies.get((kind, *each)) for each in asked]
        todo = [at for at, reply in enumerate(found) if reply is None]
        self.num_kept += len(asked) - len(todo)
        for first in range(0, len(todo), _PORTION):
            self._tick(len(asked) - len(todo) + first, len(asked))
            places = todo[first : first + _PORTION]
            for at, reply in zip(places, answer([asked[at] for at in places]), strict=True):
                found[at] = reply
            self._replies.keep(((kind, *asked[at]), found[at]) for at in places if found[at] is not None)
        self.num_asked += len(todo)
        self.too_long |= {
            (each.task_name, each.doc_id) for each, one in zip(requests, found, strict=True) if one is None
        }
        self._tick(len(asked), len(asked))
        return found

    def _score(self, pairs: list[tuple[Any, ...]]) -> list[Any]:
        whole = [self._pair(context, continuation) for context, continuation in pairs]
        fits = [len(ids) - 1 <= self._generator.max_length for ids, _ in whole]
        shorter = [each for each, does_fit in zip(whole, fits, strict=True) if does_fit]
        scores = iter(self._generator.score([ids for ids, _ in shorter], [count for _, count in shorter]))
        judged = [next(scores) if does_fit else None for does_fit in fits]
        return [(float(one.log_probs.sum()), bool(one.is_greedy.all())) if one else None for one in judged]

    def _pair(self, context: str, continuation: str) -> tuple[list[int], int]:
        """The ids of both, and how many are the context's; a space at its end goes over to the continuation."""
        text, tokenizer = context.rstrip(), self._generator.tokenizer
        return tokenizer.prompt(context + continuation), len(tokenizer.prompt(text))

    def _roll(self, texts: list[tuple[Any, ...]]) -> list[Any]:
        tokenizer = self._generator.tokenizer
        size = self._generator.max_length - 1
        parts = [windows(tokenizer.encode(text), tokenizer.bos_id, size=size) for (text,) in texts]
        return [float(sum(score.log_probs.sum() for score in self._generator.score(each))) for each in parts]

    def _reply(self, asked: list[tuple[Any, ...]]) -> list[Any]:
        prompts = [self._generator.tokenizer.prompt(context) for context, _ in asked]
        fits = [len(ids) < self._generator.max_length for ids in prompts]
        made = [_request(ids, how) for ids, (_, how), does_fit in zip(prompts, asked, fits, strict=True) if does_fit]
        whole = (
            None if one.finish_reason == "length" and len(one.ids) < request.max_tokens else one.text
            for one, request in zip(self._generator.complete(made), made, strict=True)
        )
        return [next(whole) if does_fit else None for does_fit in fits]


def _request(ids: list[int], how: Mapping[str, Any]) -> Request:
    until = how.get("until") or ()
    temperature = float(how.get("temperature", 0.0)) if how.get("do_sample") else 0.0
    return Request(
        ids,
        max_tokens=int(how.get("max_gen_toks", _MAX_TOKENS)),
        sampling=Sampling(temperature=temperature),
        stop=tuple(text for text in ([until] if isinstance(until, str) else until) if text),
    )


@cache
def task_manager() -> TaskManager:
    """lm-eval's tasks, those alone that are among our benchmarks: to read all of its thousands takes many seconds.

    >>> "hellaswag" in task_manager().all_subtasks
    True
    """
    return TaskManager(include_defaults=False, include_path=[_TASKS / name for name in _FOLDERS])


def tasks_of(benchmark: Benchmark, *, data: Path | None = None) -> dict[str, Any]:
    """A benchmark's tasks of lm-eval by name, with their data; raises FileError for data that is not there.

    >>> from gemmary.evaluate.tasks import GROUPS
    >>> tasks_of(GROUPS["report"]["gsm8k"], data=Path("no-such-folder"))
    Traceback (most recent call last):
    gemmary.base.errors.FileError: expected the data of gsm8k in no-such-folder/gsm8k, got no such folder: ...
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = task_manager()
    names = [leaf for name in benchmark.tasks for leaf in _leaves(manager, name)]
    specs = {name: _spec(name, benchmark, data) for name in names}
    try:
        tasks: dict[str, Any] = {name: ConfigurableTask(config=specs.pop(name)) for name in names if name in CODE_TASKS}
        if specs:
            tasks |= manager.load({"group": "gemmary", "task": list(specs.values())})["tasks"]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OSError) as error:
        where = "on the Hugging Face hub" if data is None else f"in {data}"
        raise FileError(
            f"expected the data of {benchmark.title} {where}, whole and as its task asks for it, but: {error!r}"
        ) from None
    for task in tasks.values():
        task.set_fewshot_seed(seed=_FEWSHOT_SEED)
    return tasks


def run(benchmark: Benchmark, model: LM, *, limit: int | None = None, data: Path | None = None) -> Measured:
    """Ask a benchmark's items, or `limit` of them, spread evenly over its parts and in each, one of each at least.

    The data comes from the Hugging Face hub, or from the folder `data` and from nowhere else. `model` is a GeneratorLM
    or any other of lm-eval's. Raises InputError for a benchmark without tasks and FileError for data that is not there.

    >>> from gemmary.evaluate.tasks import GROUPS
    >>> run(GROUPS["safety"]["bold"], model=LM)
    Traceback (most recent call last):
    gemmary.base.errors.InputError: expected a benchmark that can be run, got BOLD: not run: needs a classifier ...
    """
    if not benchmark.tasks:
        raise InputError(f"expected a benchmark that can be run, got {benchmark.title}: {benchmark.protocol}")
    tasks = tasks_of(benchmark, data=data)
    began = time.perf_counter()
    each = math.inf if limit is None else math.ceil(limit / len(tasks))
    places = {name: spread(len(task.eval_docs), each) for name, task in tasks.items()}
    chosen = None if limit is None else places
    results = ask_all(
        lm=model, task_dict={"tasks": tasks, "groups": {}}, samples=chosen, bootstrap_iters=0, log_samples=True
    )
    found = model.too_long if isinstance(model, GeneratorLM) else set()
    too_long = {(name, places[name][at]) for name, at in found if name is not None and at is not None}
    return _measured(benchmark, results["samples"], too_long=too_long, seconds=time.perf_counter() - began)


def spread(count: int, most: float) -> list[int]:
    """At most so many of `count` places, evenly: sets are often sorted, HellaSwag by sources of different difficulty.

    >>> spread(10, 4), spread(3, 4)
    ([0, 2, 5, 7], [0, 1, 2])
    """
    return [place * count // int(most) for place in range(int(most))] if most < count else list(range(count))


def _leaves(manager: TaskManager, name: str) -> list[str]:
    """The tasks that a name, a tag or a pattern stands for."""
    if name in CODE_TASKS:
        return [name]
    entry = manager.task_index.get(name)
    tags = sorted(getattr(entry, "tags", None) or ())
    if entry is not None and name not in manager.all_subtasks and tags:
        return tags
    return sorted(fnmatch.filter(manager.all_subtasks, name))


def _spec(name: str, benchmark: Benchmark, data: Path | None) -> dict[str, Any]:
    spec = {**CODE_TASKS.get(name, {}), "task": name, "num_fewshot": benchmark.shots}
    if data is None:
        return spec
    splits = local.read(data, name)
    spec["custom_dataset"] = partial(_dataset, splits)
    if "train" not in splits:
        spec["training_split"] = None  # lm-eval then takes shots from the validation part, and never the item itself
    return spec


def _dataset(splits: local.Splits, **metadata: Any) -> Any:
    from datasets import Dataset, DatasetDict

    return DatasetDict({split: Dataset.from_list(rows) for split, rows in splits.items()})


def _measured(
    benchmark: Benchmark, samples: Mapping[str, list[dict[str, Any]]], *, too_long: Set[Any], seconds: float
) -> Measured:
    values: dict[str, float] = {}
    found: dict[str, list[float]] = {}
    for task, items in samples.items():
        for item in items:
            does_fit = (task, item["doc_id"]) not in too_long
            for metric in item["metrics"] if does_fit else ():
                if isinstance(item[metric], bool | int | float):
                    found.setdefault(f"{metric},{item['filter']}", []).append(float(item[metric]))
            if item["filter"] == benchmark.filter:
                name = f"{task}/{item['doc_id']}/{item['doc_hash'][:8]}"
                values[name] = float(item[benchmark.metric]) if does_fit else 0.0
    return Measured(
        benchmark=benchmark,
        values=values,
        other={name: math.fsum(each) / len(each) for name, each in found.items()},
        num_too_long=sum(task in samples for task, _ in too_long),
        seconds=seconds,
    )
