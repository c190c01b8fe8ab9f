# SPDX-License-Identifier: Apache-2.0
"""How long one waits at the start: `import gemmary`, and `gemmary generate` until it prints its first token.

Each run is a process of its own. The first run of a model compiles and fills the compile cache; the second finds it.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from record import record

PROMPT = "The capital of France is"
BACKENDS = ("jax", "torch", "tensorflow")


def seconds(*command: str, cache: str | None = None) -> float:
    """Wall-clock seconds of a command; `cache` is where its compile cache is kept."""
    extra = {} if cache is None else {"XDG_CACHE_HOME": cache}
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **extra})
    return time.perf_counter() - start


def import_seconds(runs: int = 15) -> float:
    """The median time of `import gemmary`, the interpreter's own start subtracted."""
    bare = statistics.median(seconds(sys.executable, "-c", "pass") for _ in range(runs))
    return statistics.median(seconds(sys.executable, "-c", "import gemmary") for _ in range(runs)) - bare


def first_token_seconds(runtime: list[str], cache: str) -> float:
    """From the shell's return key to the end of a one-token reply of the embedded default."""
    gemmary = str(Path(sys.executable).with_name("gemmary"))
    return seconds(gemmary, "generate", PROMPT, "--max-tokens", "1", *runtime, cache=cache)


def main() -> None:
    rows = [("`import gemmary`", f"{import_seconds():.3f}", "")]
    runtimes = {"native": ["--engine", "native"], **{name: ["--backend", name] for name in BACKENDS}}
    for name, runtime in runtimes.items():
        with tempfile.TemporaryDirectory() as cache:
            first, second = (first_token_seconds(runtime, cache) for _ in range(2))
        rows.append((f"first token, {name}", f"{first:.1f}", f"{second:.1f}"))
    record("startup", ("seconds until", "first run", "second run"), rows, command="python benchmarks/startup.py")


if __name__ == "__main__":
    main()
