# SPDX-License-Identifier: Apache-2.0
"""Throughput of the tokenizer beside sentencepiece and tokenizers, alternating, all with Gemma 3's vocabulary.

    python benchmarks/tokenizer.py FILE ... [--rounds 5]

The files are read as UTF-8 and cut into documents of 10,000 characters. sentencepiece must give the same ids, or
nothing is recorded. "Cold" is a tokenizer that has met no word yet, which is made anew for each round.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import sentencepiece
import tokenizers
from record import record

from gemmary.formats.checkpoint import open_checkpoint
from gemmary.formats.locate import locate
from gemmary.formats.sentencepiece import write_sentencepiece
from gemmary.formats.tokenizer_json import write_tokenizer_json
from gemmary.text.tokenizer import Tokenizer

LENGTH = 10_000


def documents(paths: list[Path]) -> list[str]:
    texts = [path.read_text("utf-8") for path in paths]
    return [text[start : start + LENGTH] for text in texts for start in range(0, len(text), LENGTH)]


def seconds(encode: Callable[[list[str]], object], texts: list[str]) -> float:
    start = time.perf_counter()
    encode(texts)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    texts = documents(options.files)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    vocabulary = open_checkpoint(locate()).vocabulary
    assert vocabulary is not None
    with tempfile.TemporaryDirectory() as folder:
        write_sentencepiece(vocabulary, Path(folder, "model"))
        write_tokenizer_json(vocabulary, Path(folder, "json"))
        reference = sentencepiece.SentencePieceProcessor(model_file=str(Path(folder, "model")))
        other = tokenizers.Tokenizer.from_file(str(Path(folder, "json")))
    warm = Tokenizer(vocabulary)
    if [warm.encode(text) for text in texts] != [reference.encode(text) for text in texts]:
        raise SystemExit("expected the ids of sentencepiece, got others: nothing is recorded")
    found: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        cold = Tokenizer(vocabulary)
        cold.encode("a")  # what is made once for a vocabulary
        for name, encode in (
            ("gemmary, cold", lambda texts, cold=cold: [cold.encode(text) for text in texts]),
            ("gemmary", lambda texts: [warm.encode(text) for text in texts]),
            ("gemmary, one batch", warm.encode_batch),
            ("sentencepiece", lambda texts: [reference.encode(text) for text in texts]),
            ("sentencepiece, one batch", lambda texts: reference.encode(texts, num_threads=2)),
            ("tokenizers", lambda texts: [other.encode(text, add_special_tokens=False).ids for text in texts]),
        ):
            found.setdefault(name, []).append(seconds(encode, texts))
    base = statistics.median(found["sentencepiece"])
    rows = []
    for name, times in found.items():
        median = statistics.median(times)
        rows.append((name, f"{megabytes / median:.2f}", f"{base / median:.1f}"))
    names = " ".join(path.name for path in options.files)
    columns = (f"{megabytes:.1f} MB of text", "MB/s", "times sentencepiece's")
    record("tokenizer", columns, rows, command=f"python benchmarks/tokenizer.py {names} --rounds {options.rounds}")


if __name__ == "__main__":
    main()
