# SPDX-License-Identifier: Apache-2.0
"""gemmary.tune: from a recipe to a tuned model.

recipe ─► model ─► checkpoint ─► Trainer ─┐
       └► data ─► examples ─► Batches ────┴─► run ─► adapter/ (PEFT) or model/ (safetensors), metrics, curves
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from gemmary.api import Backend, load_tokenizer, runtime
from gemmary.base.errors import InputError

if TYPE_CHECKING:
    from gemmary.corpus.examples import Example, Loaded
    from gemmary.train.recipes import Recipe
    from gemmary.train.run import Progress
    from gemmary.train.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a training will take.

    >>> Plan(steps=10, tokens=1000, learned=500, parameters=3, step_seconds=2.0, peak_bytes=0).seconds
    20.0
    """

    steps: int
    tokens: int  # of an epoch
    learned: int  # tokens of those
    parameters: int  # numbers that are learned
    step_seconds: float  # as a trial step took that changed nothing
    peak_bytes: int  # what this process has held at most, the trial included

    @property
    def seconds(self) -> float:
        """Of all steps.

        >>> Plan(steps=0, tokens=0, learned=0, parameters=0, step_seconds=2.0, peak_bytes=0).seconds
        0.0
        """
        return self.steps * self.step_seconds


class Tuning:
    """A recipe with its model and data read; raises what reading them raises, and InputError for too little data.

    >>> from gemmary.train.recipes import Recipe
    >>> Tuning(Recipe(model="gemma-2-2c", data=("chat.jsonl",), output="tuned"))
    Traceback (most recent call last):
    gemmary.base.errors.UnknownModelError: expected a path or the name of a model, got 'gemma-2-2c': did you mean ...
    """

    def __init__(self, recipe: "Recipe", *, backend: Backend | None = None) -> None:
        from gemmary.corpus.examples import load
        from gemmary.corpus.pack import Batches, split
        from gemmary.formats.checkpoint import open_checkpoint
        from gemmary.formats.locate import locate
        from gemmary.train.curves import Board

        runtime("keras", backend)
        self._board = Board(Path(recipe.output) / "tensorboard") if recipe.curves else None
        self.recipe, self._path = recipe, locate(recipe.model)
        tokenizer = load_tokenizer(str(self._path))
        self.loaded: list[Loaded] = [
            load(source, tokenizer, length=recipe.length, cut=recipe.cut) for source in recipe.data
        ]
        examples = [example for each in self.loaded for example in each.examples]
        if not examples:
            raise InputError(f"expected examples of at most {recipe.length} tokens, got none: use a greater length")
        held: list[Example] = []
        if recipe.held_back:
            examples, held = split(examples, recipe.held_back, recipe.seed)
        rows, length, packed = recipe.batch_size, recipe.length, recipe.packed
        self.batches = Batches(examples, rows, length, recipe.seed, packed, recipe.accumulate)
        judged = Batches(held, rows, length, 0, packed) if held else None
        self.held_back = [judged.batch(step) for step in range(judged.steps_per_epoch)] if judged else []
        self.steps = max(1, ceil(recipe.epochs * self.batches.steps_per_epoch))
        self.tokenizer, self.checkpoint = tokenizer, open_checkpoint(self._path)
        self.trainer = self._trainer()

    def plan(self) -> Plan:
        """Try two steps, which change nothing, and count; the step is compiled before the second is timed.

        >>> callable(Tuning.plan)  # it needs a model and data: tests/train/test_run.py runs it
        True
        """
        from gemmary.generate.process import peak_bytes

        batch = self.batches.batch(0)
        self.trainer.try_step(batch)
        began = time.perf_counter()
        self.trainer.try_step(batch)
        return Plan(
            steps=self.steps,
            tokens=self.batches.num_tokens,
            learned=self.batches.num_learned,
            parameters=sum(each.size for each in self.trainer.learned().values()),
            step_seconds=time.perf_counter() - began,
            peak_bytes=peak_bytes(),
        )

    def run(self, report: "Callable[[Progress], None]" = lambda progress: None) -> Path | None:
        """Train to the end, or on to it, and write what was learned; None when Ctrl-C came before the end.

        >>> callable(Tuning.run)  # it needs a model and data: tests/train/test_run.py runs it
        True
        """
        from gemmary.train.curves import draw
        from gemmary.train.run import run

        recipe, folder, board = self.recipe, Path(self.recipe.output), self._board
        with board or nullcontext():
            is_done = run(
                self.trainer,
                self.batches.batch,
                steps=self.steps,
                schedule=recipe.schedule(self.steps),
                folder=folder,
                recipe={**recipe.saved(), "tokens": self.batches.num_tokens},  # of other data under the same name
                held_back=self.held_back,
                save_every=recipe.save_every,
                keep=recipe.keep,
                report=report if board is None else board.before(report),
            )
        if board:
            draw(folder / "metrics.jsonl", folder / "curve.png")
        return self._write(folder) if is_done else None

    def _trainer(self) -> "Trainer":
        from gemmary.train.trainer import Trainer

        recipe = self.recipe
        return Trainer(
            self.checkpoint,
            parameters=recipe.parameters,
            optimizer=recipe.optimizer_value,
            dtype=recipe.dtype,
            base_dtype=recipe.base_dtype,
            max_norm=recipe.max_norm,
            remat=recipe.remat,
            seed=recipe.seed,
        )

    def _write(self, folder: Path) -> Path:
        """The adapter as PEFT has it, or the whole model as Hugging Face has it; what was there is replaced."""
        import shutil
        from dataclasses import replace

        from gemmary.formats.adapter import Adapter, fingerprint
        from gemmary.formats.checkpoint import write_checkpoint
        from gemmary.formats.peft_folder import write_adapter
        from gemmary.train.parameters import LoRA

        learned, parameters = self.trainer.learned(), self.recipe.parameters
        target = folder / ("adapter" if isinstance(parameters, LoRA) else "model")
        shutil.rmtree(target, ignore_errors=True)
        if not isinstance(parameters, LoRA):
            tensors = {path: (lambda each=each: each) for path, each in learned.items()}
            write_checkpoint(replace(self.checkpoint, tensors=tensors, blocks={}), target, format="safetensors")
            return target
        adapter = Adapter(
            rank=parameters.rank,
            alpha=parameters.alpha,
            targets=parameters.targets,
            is_dora=parameters.is_dora,
            base=fingerprint(self.checkpoint),
            tensors=learned,
        )
        write_adapter(adapter, target, dtype="bfloat16")
        return target
