# SPDX-License-Identifier: Apache-2.0
"""CTranslate2 in int8 as a program to be measured beside ours; needs `pip install ctranslate2==4.8.5`."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemmary.formats.checkpoint import open_checkpoint, write_checkpoint
from gemmary.generate.process import Prompt, Timing


def write_int8(source: Path, target: Path) -> None:
    """Convert a checkpoint to the folder that CTranslate2 reads, by way of a Hugging Face folder in float32."""
    from ctranslate2.converters import TransformersConverter

    write_checkpoint(open_checkpoint(source), target / "float32", format="safetensors")
    TransformersConverter(str(target / "float32")).convert(str(target / "int8"), quantization="int8")


class CTranslate2:
    """A folder of `write_int8`, on so many threads."""

    weight_bytes = None  # it does not say

    def __init__(self, folder: Path, *, num_threads: int, num_slots: int, max_length: int) -> None:
        import ctranslate2

        self._folder, model = folder, folder / "int8"
        self._model: Any = ctranslate2.Generator(str(model), compute_type="int8", intra_threads=num_threads)
        self._pieces: list[str] = json.loads((model / "vocabulary.json").read_text("utf-8"))

    def run(self, prompts: Sequence[Prompt], reply: int) -> list[Timing]:
        """Continue all prompts at once, each by `reply` tokens."""
        starts = [[self._pieces[each] for each in self._ids(prompt)] for prompt in prompts]
        times = [time.perf_counter()]
        self._model.generate_batch(
            starts,
            min_length=reply,
            max_length=reply,
            include_prompt_in_result=False,  # else the prompt is read token by token
            callback=lambda _: times.append(time.perf_counter()),
        )
        first = times[len(prompts)]  # when the last sequence has its first token
        return [Timing(first - times[0], times[-1] - first)] * len(prompts)

    def _ids(self, prompt: Prompt) -> list[int]:
        if not isinstance(prompt, str):
            return prompt
        from tokenizers import Tokenizer

        ids: list[int] = Tokenizer.from_file(str(self._folder / "float32" / "tokenizer.json")).encode(prompt).ids
        return ids
