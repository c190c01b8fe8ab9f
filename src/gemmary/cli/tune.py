# SPDX-License-Identifier: Apache-2.0
"""gemmary tune: teach a model from examples, by a recipe."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemmary.cli import options

if TYPE_CHECKING:
    from gemmary.train.run import Progress
    from gemmary.tune import Plan, Tuning


def tune(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file: data, output, and what differs.")],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Values that take the place of the recipe's.")
    ] = None,
    backend: options.KerasBackend = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show data and plan, and train nothing.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Tune a model on conversations, instructions or texts.

    Shows the first example with what is learned of it, and what time and memory a step takes, before the first one.
    Ctrl-C saves; the same command goes on from there. What was learned is an adapter for --adapter, or a whole model.

    >>> tune(Path("no-such.toml"))
    Traceback (most recent call last):
    gemmary.base.errors.FileError: expected a recipe in TOML, got no-such.toml: No such file or directory
    """
    from gemmary.api import runtime

    runtime("keras", backend)
    from gemmary.train.recipes import read_recipe
    from gemmary.tune import Tuning

    tuning = Tuning(read_recipe(recipe, changes or []), backend=backend)
    for line in _told(tuning):
        options.note(line)
    plan = tuning.plan()
    options.note(_planned(plan, tuning.recipe.batch_tokens))
    if dry_run:
        return
    reporter = _Reporter()
    target = tuning.run(reporter)
    reporter.end()
    if target is None:
        options.note("saved; the same command goes on from here")
        raise typer.Exit(130)
    if as_json:
        last = reporter.last
        loss = last.metrics.loss if last and last.metrics else None
        options.print_json({"output": str(target), "steps": tuning.steps, "loss": loss})
    else:
        options.note(f"{target}: {options.size(options.disk_bytes(target))}")


def _told(tuning: "Tuning") -> list[str]:
    """What was read, and the first example."""
    from gemmary.corpus.examples import preview

    lines = []
    for source, each in zip(tuning.recipe.data, tuning.loaded, strict=True):
        left = [
            f"{count:,} {what}"
            for count, what in ((each.duplicates, "duplicates"), (each.too_long, "too long"))
            if count
        ]
        without = f" without {' and '.join(left)}" if left else ""
        lines.append(f"{source}: {each.kept:,} rows{without}, {each.tokens:,} tokens, {each.learned:,} learned")
    first = next(example for each in tuning.loaded for example in each.examples)
    return [*lines, "the first, what is learned in brackets:", preview(first, tuning.tokenizer)]


def _planned(plan: "Plan", tokens: int) -> str:
    speed = f"{plan.step_seconds:.2f} s ({tokens / plan.step_seconds:,.0f} tokens/s with padding)"
    return (
        f"{plan.parameters:,} numbers are learned in {plan.steps:,} steps of {speed}: "
        f"{_time(plan.seconds)}, {options.size(plan.peak_bytes)} of memory"
    )


def _time(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600} h {whole % 3600 // 60:02} min" if whole >= 3600 else f"{whole // 60} min {whole % 60:02} s"


class _Reporter:
    """The line of progress: drawn anew on a terminal, every tenth step a line elsewhere."""

    def __init__(self) -> None:
        self.last: Progress | None = None
        self._seconds, self._done, self._loss = 0.0, 0, 0.0

    def __call__(self, progress: "Progress") -> None:
        self.last, metrics = progress, progress.metrics
        if metrics is None:
            if progress.step:
                options.note(f"goes on from step {progress.step} of {progress.steps}")
            return
        self._seconds, self._done = self._seconds + progress.seconds, self._done + 1
        self._loss = metrics.loss if self._done == 1 else 0.9 * self._loss + 0.1 * metrics.loss
        left = (progress.steps - progress.step) * self._seconds / self._done
        line = (
            f"step {progress.step} of {progress.steps}  loss {self._loss:.3f}  "
            f"{progress.tokens_per_second:,.0f} tokens/s  {_time(left)} left"
        )
        if not metrics.is_finite:
            line += "  (left out: not finite)"
        if progress.held_back is not None:
            line += f"  held back {progress.held_back:.3f}"
        is_kept = progress.held_back is not None or not metrics.is_finite or progress.step == progress.steps
        if sys.stderr.isatty():
            print(f"\r{line}\033[K", end="\n" if is_kept else "", file=sys.stderr, flush=True)
        elif is_kept or progress.step % 10 == 0:
            options.note(line)

    def end(self) -> None:
        """Leave the line that was drawn."""
        if sys.stderr.isatty():
            print(file=sys.stderr)
