# SPDX-License-Identifier: Apache-2.0
"""Throughput of the tokenizer beside sentencepiece and tokenizers, alternating, all with Gemma 3's vocabulary.

    python benchmarks/tokenizer.py FILE ... [--rounds 5]

The first file alone, all files, and every different word of them once; read as UTF-8 and cut into documents of 10,000
characters. sentencepiece must give the same ids, or nothing is recorded. "Cold" is a tokenizer that has met no word
yet, which is made anew for each round. The table has MB/s and, in brackets, how many times sentencepiece's that is.
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
from gemmary.formats.sentencepiece import Vocabulary, write_sentencepiece
from gemmary.formats.tokenizer_json import write_tokenizer_json
from gemmary.text.tokenizer import Tokenizer

LENGTH = 10_000


def documents(text: str) -> list[str]:
    return [text[start : start + LENGTH] for start in range(0, len(text), LENGTH)]


def seconds(encode: Callable[[list[str]], object], texts: list[str]) -> float:
    start = time.perf_counter()
    encode(texts)
    return time.perf_counter() - start


def throughputs(
    vocabulary: Vocabulary, peers: dict[str, Callable[[list[str]], object]], texts: list[str], rounds: int
) -> dict[str, tuple[float, float]]:
    """MB/s of each, and how many times sentencepiece's; medians."""
    warm = Tokenizer(vocabulary)
    if [warm.encode(text) for text in texts] != peers["sentencepiece"](texts):
        raise SystemExit("expected the ids of sentencepiece, got others: nothing is recorded")
    warm.encode_batch(texts)
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        cold = Tokenizer(vocabulary)
        cold.encode("a")  # what is made once for a vocabulary
        ours = {
            "gemmary, cold": lambda texts, cold=cold: [cold.encode(text) for text in texts],
            "gemmary": lambda texts: [warm.encode(text) for text in texts],
            "gemmary, one batch": warm.encode_batch,
        }
        for name, encode in (ours | peers).items():
            found.setdefault(name, []).append(seconds(encode, texts))
    medians = {name: statistics.median(times) for name, times in found.items()}
    size = sum(len(text.encode()) for text in texts) / 1e6
    return {name: (size / median, medians["sentencepiece"] / median) for name, median in medians.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    contents = [path.read_text("utf-8") for path in options.files]
    words = " ".join(dict.fromkeys(" ".join(contents).split()))
    corpora = {
        options.files[0].name: documents(contents[0]),
        "all": [part for text in contents for part in documents(text)],
        "each word once": documents(words),
    }
    vocabulary = open_checkpoint(locate()).vocabulary
    assert vocabulary is not None
    with tempfile.TemporaryDirectory() as folder:
        write_sentencepiece(vocabulary, Path(folder, "model"))
        write_tokenizer_json(vocabulary, Path(folder, "json"))
        reference = sentencepiece.SentencePieceProcessor(model_file=str(Path(folder, "model")))
        other = tokenizers.Tokenizer.from_file(str(Path(folder, "json")))
    peers = {
        "sentencepiece": lambda texts: [reference.encode(text) for text in texts],
        "sentencepiece, one batch": lambda texts: reference.encode(texts, num_threads=2),
        "tokenizers": lambda texts: [other.encode(text, add_special_tokens=False).ids for text in texts],
    }
    found = {name: throughputs(vocabulary, peers, texts, options.rounds) for name, texts in corpora.items()}
    columns = ["MB/s (times sentencepiece's)"]
    columns += [f"{name}, {sum(len(text.encode()) for text in texts) / 1e6:.1f} MB" for name, texts in corpora.items()]
    rows = []
    for name in found["all"]:
        rows.append([name, *(f"{speed:.2f} ({times:.1f})" for speed, times in (each[name] for each in found.values()))])
    names = " ".join(path.name for path in options.files)
    record("tokenizer", columns, rows, command=f"python benchmarks/tokenizer.py {names} --rounds {options.rounds}")


if __name__ == "__main__":
    main()
