# SPDX-License-Identifier: Apache-2.0
"""What 4 bits cost in perplexity, by how their scales are chosen: writes a section of docs/numbers.md.

python benchmarks/quantizing.py CALIBRATION TEXT [--model MODEL] [--tokens 2048] [--no-record]
"""

import argparse
import tempfile
from pathlib import Path

from record import record

import gemmary
from gemmary.formats.checkpoint import open_checkpoint, write_checkpoint
from gemmary.formats.locate import locate
from gemmary.generate.calibrate import alike, input_squares
from gemmary.generate.perplexity import WINDOW, perplexity, windows

CALIBRATION = 4096  # tokens, as many as `gemmary quantize --calibrate` reads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--no-record", action="store_true")
    options = parser.parse_args()
    path = locate(options.model)
    checkpoint, tokenizer = open_checkpoint(path), gemmary.load_tokenizer(str(path))
    calibration = windows(tokenizer.encode(options.calibration.read_text("utf-8"))[:CALIBRATION], tokenizer.bos_id)
    ids = tokenizer.encode(options.text.read_text("utf-8"))[: options.tokens]
    chosen = {
        "Q4_0, rounded as ggml does": lambda: None,
        "Q4_0, least squares": lambda: alike(checkpoint.config),
        "Q4_0, least squares weighted by the activations": lambda: input_squares(checkpoint, calibration),
    }

    def row(name: str, path: Path) -> list[str]:
        generator = gemmary.load(str(path), engine="native", max_length=WINDOW, num_slots=1)
        found = [name, f"{path.stat().st_size / 1e6:.0f}", f"{perplexity(generator, ids):.3f}"]
        print(*found, flush=True)
        return found

    rows = [row(f"the source, {path.stem}", path)]
    for name, importance in chosen.items():
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder, "model.gguf")
            write_checkpoint(checkpoint, target, format="gguf", dtype="q4_0", importance=importance())
            rows.append(row(name, target))
    if not options.no_record:
        columns = ["Gemma 3 270M" if options.model is None else options.model, "MB", "perplexity"]
        texts = f"{options.calibration.name} {options.text.name}"
        record("quantizing", columns, rows, command=f"python benchmarks/quantizing.py {texts}")


if __name__ == "__main__":
    main()
