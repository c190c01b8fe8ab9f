# SPDX-License-Identifier: Apache-2.0
"""The native engine beside llama.cpp, on the same file and the same threads: writes two sections of docs/numbers.md.

    python benchmarks/native.py [MODEL.gguf] [--pairs 5] [--threads 2] [--no-record]

Each program runs in a process of its own and is asked in turn, so that both meet the same noise; the medians are
compared. Needs xllamacpp. Times are each program's own: from a request to its first token, and from there to its last.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from record import record

PROMPT, REPLY, BATCH = 512, 33, 8
MEASURES = {
    "prefill": f"prefill of {PROMPT}, tokens/s",
    "decode": "decode, tokens/s",
    "decode_late": f"decode after {PROMPT}, tokens/s",
    "batch": f"decode of {BATCH} at once, tokens/s in all",
}


def prompt_ids(length: int, seed: int) -> list[int]:
    """Ids that nobody has in a cache."""
    return [2, *(1000 + (seed * 7919 + at * 104_729) % 190_000 for at in range(length - 1))]


def ours(path: Path, threads: int) -> Callable[[str, int], float]:
    """A function that measures the native engine."""
    from gemmary.formats.checkpoint import open_checkpoint
    from gemmary.generate.batched import BatchedGenerator
    from gemmary.generate.native_engine import NativeEngine
    from gemmary.generate.request import Request
    from gemmary.text.tokenizer import Tokenizer

    checkpoint = open_checkpoint(path)
    assert checkpoint.vocabulary is not None
    engine = NativeEngine(checkpoint, num_slots=BATCH, max_length=1024, num_threads=threads)
    generator = BatchedGenerator(engine, Tokenizer(checkpoint.vocabulary))

    def measure(what: str, seed: int) -> float:
        count = BATCH if what == "batch" else 1
        length, tokens = (PROMPT, 1) if what == "prefill" else (PROMPT if what == "decode_late" else 16, REPLY)
        requests = [
            Request(prompt_ids(length, seed + each), max_tokens=tokens, ignore_stop_ids=True) for each in range(count)
        ]
        usages = [reply.usage for reply in generator.complete(requests)]
        if what == "prefill":
            return PROMPT / usages[0].prefill_seconds
        return count * (REPLY - 1) / max(usage.decode_seconds for usage in usages)

    return measure


def llama_cpp(path: Path, threads: int) -> Callable[[str, int], float]:
    """A function that measures llama.cpp."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel = str(path), 1024 * BATCH, BATCH
    settings.n_batch = settings.n_ubatch = PROMPT
    settings.fit_params, settings.verbosity, settings.warmup = False, 0, True
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(settings)

    def ask(length: int, tokens: int, seed: int) -> dict[str, float]:
        asked = {"prompt": prompt_ids(length, seed), "n_predict": tokens, "temperature": 0, "ignore_eos": True}
        answer: dict[str, Any] = server.handle_completions({**asked, "cache_prompt": False})
        return dict(answer["timings"])

    def measure(what: str, seed: int) -> float:
        if what == "prefill":
            return ask(PROMPT, 1, seed)["prompt_per_second"]
        length = PROMPT if what == "decode_late" else 16
        if what != "batch":
            return ask(length, REPLY, seed)["predicted_per_second"]
        with ThreadPoolExecutor(BATCH) as pool:
            times = list(pool.map(lambda each: ask(length, REPLY, seed + each), range(BATCH)))
        return BATCH * REPLY / max(each["predicted_ms"] / 1000 for each in times)

    return measure


PROGRAMS = {"gemmary": ours, "llama.cpp": llama_cpp}


def serve(program: str, path: Path, threads: int) -> None:
    """Measure what is asked for on stdin, line by line, until it ends."""
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the program prints is not an answer
    measure = PROGRAMS[program](path, threads)
    for line in sys.stdin:
        what, seed = line.split()
        print(measure(what, int(seed)), file=output, flush=True)


def first_token(program: str, path: Path, threads: int) -> tuple[float, float]:
    """Seconds from the start of a process to its first token, and its peak memory in MB."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command("--first", program, path, threads), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    process.stdout.readline()
    seconds = time.perf_counter() - began
    _, _, usage = os.wait4(process.pid, 0)
    return seconds, usage.ru_maxrss / 1000


def first(program: str, path: Path, threads: int) -> None:
    """Start as a user's program would, and say when the first token is there."""
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if program == "gemmary":
        import gemmary

        model = gemmary.load(str(path), engine="native", max_length=2048, num_slots=1)
        next(iter(model.stream(gemmary.Request("The capital of France is", max_tokens=1))))
    else:
        import xllamacpp

        settings = xllamacpp.CommonParams()
        settings.model.path, settings.n_ctx, settings.n_parallel = str(path), 2048, 1
        settings.fit_params, settings.verbosity, settings.warmup = False, 0, False
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
        server = xllamacpp.Server(settings)
        server.handle_completions({"prompt": "The capital of France is", "n_predict": 1, "temperature": 0})
    print("done", file=output, flush=True)
    os._exit(0)


def command(mode: str, program: str, path: Path, threads: int) -> list[str]:
    return [sys.executable, __file__, mode, program, str(path), "--threads", str(threads)]


def ask(process: "subprocess.Popen[str]", what: str, seed: int) -> float:
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None and stdout is not None
    print(what, seed, file=stdin, flush=True)
    return float(stdout.readline())


def compare(path: Path, threads: int, pairs: int) -> list[list[object]]:
    """A row for each measure: medians of both, and of the ratios of the pairs."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    processes = {
        name: subprocess.Popen(command("--serve", name, path, threads), text=True, **pipes) for name in PROGRAMS
    }
    rows: list[list[object]] = []
    for what, label in MEASURES.items():
        for process in processes.values():
            ask(process, what, 1)
        found = [[ask(process, what, 100 * pair) for process in processes.values()] for pair in range(pairs)]
        mine, theirs = (statistics.median(each) for each in zip(*found, strict=True))
        ratio = statistics.median(a / b for a, b in found)
        rows.append([label, f"{mine:.1f}", f"{theirs:.1f}", f"{ratio:.2f}"])
        print(*rows[-1], found, file=sys.stderr, flush=True)
    for process in processes.values():
        process.stdin.close()  # type: ignore[union-attr]
        process.wait()
    starts = [[first_token(name, path, threads) for name in PROGRAMS] for _ in range(pairs)]
    for at, (label, digits) in enumerate((("process start to first token, s", 2), ("peak memory of that, MB", 0))):
        mine, theirs = (statistics.median(pair[program][at] for pair in starts) for program in (0, 1))
        rows.append([label, f"{mine:.{digits}f}", f"{theirs:.{digits}f}", f"{mine / theirs:.2f}"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--no-record", action="store_true")
    parser.add_argument("--serve", nargs=2)
    parser.add_argument("--first", nargs=2)
    options = parser.parse_args()
    for mode, function in ((options.serve, serve), (options.first, first)):
        if mode:
            function(mode[0], Path(mode[1]), options.threads)
            return
    path = options.model
    if path is None:
        from gemmary.formats.locate import embedded_default

        path = embedded_default()
    rows = compare(path, options.threads, options.pairs)
    columns = [f"{path.stem}, {options.threads} threads", "gemmary", "llama.cpp", "ratio"]
    if options.no_record:
        print(*("  ".join(map(str, row)) for row in [columns, *rows]), sep="\n")
    else:
        record("decode", columns, rows, command=f"python benchmarks/native.py --pairs {options.pairs}")


if __name__ == "__main__":
    main()
