# SPDX-License-Identifier: Apache-2.0
"""A training from its first step, or the last one saved, to its end: steps, metrics, checkpoints, Ctrl-C.

    batch(n) ─► trainer.step ─► metrics.jsonl, the caller's report ─┬─► next
                                                                    └─► every so many: judge, save

Batch n is a function of n, so a training that goes on from a checkpoint is the one that was never stopped, bit for bit.
"""

import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from gemmary.base.errors import TrainingError
from gemmary.train.optimizer import Schedule
from gemmary.train.state import restore, save, saved
from gemmary.train.trainer import Metrics, Trainer

Batch = Mapping[str, NDArray[Any]]
MOST_FAULTS = 10  # steps in a row that are not finite


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How a training stands after a step.

    >>> Progress(step=3, steps=10, metrics=None, seconds=2.0, tokens=2048, held_back=None).tokens_per_second
    1024.0
    """

    step: int  # steps that are done
    steps: int
    metrics: Metrics | None  # None before the first
    seconds: float  # of this step
    tokens: int  # of this step, padding left out
    held_back: float | None  # the loss on what is held back, where it was measured

    @property
    def tokens_per_second(self) -> float:
        """How fast this step was.

        >>> Progress(step=0, steps=10, metrics=None, seconds=0.0, tokens=0, held_back=None).tokens_per_second
        0.0
        """
        return self.tokens / self.seconds if self.seconds else 0.0


def run(
    trainer: Trainer,
    batch: Callable[[int], Batch],
    *,
    steps: int,
    schedule: Schedule,
    folder: Path,
    recipe: Mapping[str, Any],
    held_back: Sequence[Batch] = (),
    save_every: int = 100,
    keep: int = 2,
    report: Callable[[Progress], None] = lambda progress: None,
) -> bool:
    """Train to a number of steps, going on from the newest checkpoint in `folder`; False when Ctrl-C ended it early.

    Writes `folder`/metrics.jsonl, a line a step, and `folder`/checkpoints. Ctrl-C ends after the step that runs, and
    saves. A step that is not finite is left out and reported; after ten in a row TrainingError is raised.

    >>> import tempfile
    >>> from gemmary.model.weights import numpy_array
    >>> from gemmary.train.objective import example_batch
    >>> from gemmary.train.parameters import LoRA, example_checkpoint
    >>> trainer = Trainer(example_checkpoint(), parameters=LoRA(rank=2))
    >>> batch = {name: numpy_array(each) for name, each in example_batch().items()}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     place, schedule = Path(folder), Schedule(peak=0.01, steps=2)
    ...     run(trainer, lambda step: batch, steps=2, schedule=schedule, folder=place, recipe={})
    ...     sorted(path.name for path in place.iterdir())
    True
    ['checkpoints', 'metrics.jsonl']
    """
    checkpoints = folder / "checkpoints"
    known = saved(checkpoints)
    if known:
        trainer.state = restore(known[-1], recipe=recipe)
    folder.mkdir(parents=True, exist_ok=True)
    log, faults = _Log(folder / "metrics.jsonl", trainer.steps), 0
    report(Progress(step=trainer.steps, steps=steps, metrics=None, seconds=0.0, tokens=0, held_back=None))
    with _until_interrupted() as is_interrupted:
        for step in range(trainer.steps, steps):
            arrays, rate, began = batch(step), schedule.rate(step), time.perf_counter()
            metrics = trainer.step(arrays, rate=rate)
            seconds, tokens = time.perf_counter() - began, int((arrays["segments"] > 0).sum())
            fault = None if metrics.is_finite else trainer.first_fault(arrays)
            faults = faults + 1 if fault else 0
            is_last = step + 1 == steps
            stops = is_interrupted() or faults == MOST_FAULTS  # asked once: what comes later waits for the next step
            saves = is_last or stops or (step + 1) % save_every == 0
            loss = trainer.evaluate(held_back) if held_back and saves else None
            log.write(step + 1, metrics, rate=rate, seconds=seconds, tokens=tokens, held_back=loss, fault=fault)
            if saves:
                save(checkpoints, trainer.state, recipe=recipe, loss=loss, keep=keep)
            report(
                Progress(step=step + 1, steps=steps, metrics=metrics, seconds=seconds, tokens=tokens, held_back=loss)
            )
            if faults == MOST_FAULTS:
                raise _unsound(fault)
            if stops:
                return is_last
    return True


def _unsound(fault: str | None) -> TrainingError:
    return TrainingError(
        f"expected finite numbers, got none in {MOST_FAULTS} steps, the last first in {fault}: "
        "use a lower rate, or look at the data of these steps"
    )


class _Log:
    """Metrics as JSON, a line a step, without what is not finite; lines of steps that come again are taken back."""

    def __init__(self, path: Path, steps: int) -> None:
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        kept = [line for line in lines[:steps] if line.endswith("}")]
        path.write_text("".join(f"{line}\n" for line in kept), "utf-8")
        self._path = path

    def write(self, step: int, metrics: Metrics, **more: Any) -> None:
        values = {"step": step, "loss": metrics.loss, "norm": metrics.norm, "learned": metrics.learned, **more}
        sound = {name: value for name, value in values.items() if isinstance(value, str) or isfinite(value or 0)}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(sound) + "\n")


@contextmanager
def _until_interrupted() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C came since the block began; in a thread that is not the main one it is not seen here."""
    came: list[int] = []
    try:
        known = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    except ValueError:
        yield lambda: False
        return
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGINT, known)
