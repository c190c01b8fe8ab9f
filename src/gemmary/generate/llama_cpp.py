# SPDX-License-Identifier: Apache-2.0
"""llama.cpp as a program to be measured beside ours, where its Python binding xllamacpp is installed."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gemmary.formats.gguf_file import is_gguf
from gemmary.generate.process import Prompt, Timing


def why_not(path: Path) -> str | None:
    """Why llama.cpp cannot run a model here; None if it can.

    >>> why_not(Path("model.safetensors"))
    'it reads GGUF only, which gemmary convert writes'
    """
    if not is_gguf(path):
        return "it reads GGUF only, which gemmary convert writes"
    return None if find_spec("xllamacpp") else "pip install xllamacpp"


class LlamaCpp:
    """A GGUF file in llama.cpp with its defaults, on so many threads; nothing is kept from one prompt to the next.

    >>> LlamaCpp.run.__name__, LlamaCpp.weight_bytes is None
    ('run', True)
    """

    weight_bytes = None  # it does not say

    def __init__(self, path: Path, *, num_threads: int, num_slots: int, max_length: int) -> None:
        import xllamacpp

        settings = xllamacpp.CommonParams()
        settings.model.path, settings.n_ctx, settings.n_parallel = str(path), max_length * num_slots, num_slots
        settings.fit_params, settings.verbosity, settings.warmup = False, 0, False
        settings.cache_ram_mib, settings.n_ctx_checkpoints = 0, 0  # copies of the cache that a server keeps
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = num_threads
        self._server = xllamacpp.Server(settings)

    def run(self, prompts: Sequence[Prompt], reply: int) -> list[Timing]:
        """Continue all prompts at once, each by `reply` tokens."""
        with ThreadPoolExecutor(len(prompts)) as pool:
            return list(pool.map(self._run, prompts, [reply] * len(prompts)))

    def _run(self, prompt: Prompt, reply: int) -> Timing:
        asked = {"prompt": prompt, "n_predict": reply, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        times: dict[str, Any] = self._server.handle_completions(asked)["timings"]
        return Timing(times["prompt_ms"] / 1000, times["predicted_ms"] / 1000)
