# SPDX-License-Identifier: Apache-2.0
"""What a training did, to look at: events for TensorBoard while it runs, the loss as a PNG after it.

metrics.jsonl ─► draw ─► curve.png
Progress ─► Board ─► events.out.tfevents...
"""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemmary.base.errors import MissingExtraError

if TYPE_CHECKING:
    from gemmary.train.run import Progress


class Board:
    """A folder that `tensorboard --logdir` shows: loss, gradient's norm, tokens a second, loss on what is held back.

    Steps that come again after a kill take the place of those that were written. Raises MissingExtraError without
    tensorboardX or matplotlib, which the curve needs when all is done.

    >>> import tempfile
    >>> from gemmary.train.run import Progress
    >>> with tempfile.TemporaryDirectory() as folder, Board(Path(folder)) as board:
    ...     report = board.before(print)
    ...     report(Progress(step=0, steps=9, metrics=None, seconds=0.0, tokens=0, held_back=None))
    ...     len(list(Path(folder).glob("events.out.tfevents.*")))
    Progress(step=0, steps=9, metrics=None, seconds=0.0, tokens=0, held_back=None)
    1
    """

    def __init__(self, folder: Path) -> None:
        for module in ("tensorboardX", "matplotlib"):
            if find_spec(module) is None:
                raise MissingExtraError.of("curves = true", module, "curves")
        self._folder = folder
        self._writer: Any = None

    def __enter__(self) -> "Board":
        return self

    def __exit__(self, *error: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def before(self, report: "Callable[[Progress], None]") -> "Callable[[Progress], None]":
        """A report that writes to the folder, and then is the one given."""

        def both(progress: "Progress") -> None:
            self._write(progress)
            report(progress)

        return both

    def _write(self, progress: "Progress") -> None:
        if self._writer is None:
            from tensorboardX import SummaryWriter

            again = {"purge_step": progress.step + 1} if progress.step else {}
            self._writer = SummaryWriter(str(self._folder), **again)
        if progress.metrics is None:
            return
        values = {
            "loss": progress.metrics.loss,
            "norm": progress.metrics.norm,
            "tokens_per_second": progress.tokens_per_second,
            "held_back": progress.held_back,
        }
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, progress.step)


def draw(metrics: Path, target: Path) -> None:
    """Draw the loss over the steps of a metrics.jsonl, smoothed, with what was held back.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     metrics, target = Path(folder) / "metrics.jsonl", Path(folder) / "curve.png"
    ...     _ = metrics.write_text('{"step": 1, "loss": 3.0, "held_back": 3.1}\\n{"step": 2, "loss": 2.0}\\n', "utf-8")
    ...     draw(metrics, target)
    ...     target.read_bytes()[:4]
    b'\\x89PNG'
    """
    from matplotlib.figure import Figure  # without pyplot: no window, and nothing is kept

    lines = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()]
    learned = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    judged = [(line["step"], line["held_back"]) for line in lines if line.get("held_back") is not None]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss, nats a token")
    if learned:
        steps, losses = zip(*learned, strict=True)
        axes.plot(steps, losses, color="0.8", linewidth=0.8)
        axes.plot(steps, _smooth(losses), label="learned, smoothed")
    if judged:
        axes.plot(*zip(*judged, strict=True), "o-", label="held back")
    if learned or judged:
        axes.legend()
    figure.savefig(target, format="png", dpi=120)


def _smooth(losses: tuple[float, ...], keep: float = 0.95) -> list[float]:
    """A running mean that forgets; early values are weighed as if nothing had been before them."""
    total, weight, found = 0.0, 0.0, []
    for loss in losses:
        total, weight = keep * total + (1 - keep) * loss, keep * weight + (1 - keep)
        found.append(total / weight)
    return found
