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
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lm_eval.tasks
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate as ask_all
from lm_eval.tasks import TaskManager

from gemmary.base.errors import InputError
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
    """A Generator as lm-eval's model. A request that does not fit in the context is counted as wrong, never cut.

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
        self.num_too_long = 0

    def loglikelihood(self, requests: "list[Instance]") -> list[tuple[float, bool]]:
        """The log-probability of each continuation after its context, and whether it is the greedy one."""
        found = self._answered("score", [request.args for request in requests], self._score)
        return [(float(log_prob), bool(is_greedy)) for log_prob, is_greedy in found]

    def loglikelihood_rolling(self, requests: "list[Instance]") -> list[float]:
        """The log-probability of each text, in windows of the context's length."""
        return [float(value) for value in self._answered("roll", [request.args for request in requests], self._roll)]

    def generate_until(self, requests: "list[Instance]") -> list[str]:
        """The replies, without the strings that end them."""
        return [str(text) for text in self._answered("reply", [request.args for request in requests], self._reply)]

    def _answered(
        self, kind: str, asked: Sequence[tuple[Any, ...]], answer: Callable[[list[tuple[Any, ...]]], list[Any]]
    ) -> list[Any]:
        """Answers from the disk, and where there is none from the model, a portion at a time."""
        found = {at: self._replies.get((kind, *each)) for at, each in enumerate(asked)}
        todo = [at for at, reply in found.items() if reply is None]
        self.num_kept += len(asked) - len(todo)
        for first in range(0, len(todo), _PORTION):
            self._tick(len(asked) - len(todo) + first, len(asked))
            places = todo[first : first + _PORTION]
            answers = answer([asked[at] for at in places])
            self._replies.keep(((kind, *asked[at]), reply) for at, reply in zip(places, answers, strict=True))
            found.update(zip(places, answers, strict=True))
        self.num_asked += len(todo)
        self._tick(len(asked), len(asked))
        return [found[at] for at in range(len(asked))]

    def _score(self, pairs: list[tuple[Any, ...]]) -> list[Any]:
        whole = [self._pair(context, continuation) for context, continuation in pairs]
        fits = [self._fits(len(ids) - 1) for ids, _ in whole]
        shorter = [each for each, is_short in zip(whole, fits, strict=True) if is_short]
        scores = iter(self._generator.score([ids for ids, _ in shorter], [count for _, count in shorter]))
        judged = [next(scores) if is_short else None for is_short in fits]
        return [(float(s.log_probs.sum()), bool(s.is_greedy.all())) if s else (-1e9, False) for s in judged]

    def _pair(self, context: str, continuation: str) -> tuple[list[int], int]:
        """The ids of both, and how many are the context's; a space at its end goes over to the continuation."""
        text = context.rstrip()
        continuation = context[len(text) :] + continuation if text else continuation
        tokenizer = self._generator.tokenizer
        return tokenizer.prompt(text + continuation), len(tokenizer.prompt(text))

    def _roll(self, texts: list[tuple[Any, ...]]) -> list[Any]:
        tokenizer = self._generator.tokenizer
        size = self._generator.max_length - 1
        parts = [windows(tokenizer.encode(text), tokenizer.bos_id, size=size) for (text,) in texts]
        return [float(sum(score.log_probs.sum() for score in self._generator.score(each))) for each in parts]

    def _reply(self, asked: list[tuple[Any, ...]]) -> list[Any]:
        prompts = [self._generator.tokenizer.prompt(context) for context, _ in asked]
        fits = [self._fits(len(ids) + 1) for ids in prompts]
        made = [_request(ids, how) for ids, (_, how), is_short in zip(prompts, asked, fits, strict=True) if is_short]
        replies = iter(self._generator.complete(made))
        return [next(replies).text if is_short else "" for is_short in fits]

    def _fits(self, num_tokens: int) -> bool:
        does_fit = num_tokens <= self._generator.max_length
        self.num_too_long += not does_fit
        return does_fit


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
    tasks: dict[str, Any] = {name: ConfigurableTask(config=specs.pop(name)) for name in names if name in CODE_TASKS}
    if specs:
        tasks |= manager.load({"group": "gemmary", "task": list(specs.values())})["tasks"]
    for task in tasks.values():
        task.set_fewshot_seed(seed=_FEWSHOT_SEED)
    return tasks


def run(benchmark: Benchmark, model: LM, *, limit: int | None = None, data: Path | None = None) -> Measured:
    """Ask a benchmark's items, or the first `limit` of them, spread evenly over its parts.

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
    began, before = time.perf_counter(), getattr(model, "num_too_long", 0)
    each = None if limit is None else math.ceil(limit / len(tasks))
    results = ask_all(
        lm=model, task_dict={"tasks": tasks, "groups": {}}, limit=each, bootstrap_iters=0, log_samples=True
    )
    num_too_long = getattr(model, "num_too_long", 0) - before
    seconds = time.perf_counter() - began
    return _measured(benchmark, results["samples"], num_too_long=num_too_long, seconds=seconds)


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
        spec["training_split"] = None
        if "validation" in splits and "dev" not in splits:
            spec["fewshot_split"] = "validation"  # where that is what is asked, an item is no shot of its own
    return spec


def _dataset(splits: local.Splits, **metadata: Any) -> Any:
    from datasets import Dataset, DatasetDict

    return DatasetDict({split: Dataset.from_list(rows) for split, rows in splits.items()})


def _measured(
    benchmark: Benchmark, samples: Mapping[str, list[dict[str, Any]]], *, num_too_long: int, seconds: float
) -> Measured:
    values: dict[str, float] = {}
    sums: dict[str, list[float]] = {}
    for task, items in samples.items():
        for item in items:
            for metric in item["metrics"]:
                value = item[metric]
                if isinstance(value, bool | int | float):
                    sums.setdefault(f"{metric},{item['filter']}", []).append(float(value))
            if item["filter"] == benchmark.filter:
                values[f"{task}/{item['doc_id']}/{item['doc_hash'][:8]}"] = float(item[benchmark.metric])
    other = {name: math.fsum(found) / len(found) for name, found in sums.items()}
    return Measured(benchmark=benchmark, values=values, other=other, num_too_long=num_too_long, seconds=seconds)
