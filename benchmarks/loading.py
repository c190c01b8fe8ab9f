# SPDX-License-Identifier: Apache-2.0
"""How much memory loading takes beside the arrays: the embedded default in each format, read tensor by tensor.

Each file is opened and read in a process of its own, with its vocabulary of 262,144 pieces, which is part of the peak;
the peak is what the kernel has seen (VmHWM), less what the process had before it opened the file. Linux only.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from record import record

CHILD = """
import json, re, sys, time
from pathlib import Path
import h5py, ml_dtypes, numpy
from gemmary.formats.checkpoint import open_checkpoint

def kilobytes(key):
    return int(re.search(key + r":\\s*(\\d+)", Path("/proc/self/status").read_text())[1])

before, start = kilobytes("VmRSS"), time.perf_counter()
checkpoint = open_checkpoint(Path(sys.argv[1]))
opened = kilobytes("VmHWM") - before
arrays = {path: read() for path, read in checkpoint.tensors.items()}
took = time.perf_counter() - start
peak = kilobytes("VmHWM") - before
print(json.dumps([sum(array.nbytes for array in arrays.values()), opened << 10, peak << 10, took]))
"""
FILES = {  # the format's name, the precision, and where it is written; the first is the default itself
    "gguf, Q4_K_M": ("", "", ""),
    "gguf, float32": ("gguf", "float32", "float32.gguf"),
    "gguf, bfloat16": ("gguf", "bfloat16", "bfloat16.gguf"),
    "safetensors, float32": ("safetensors", "float32", "float32"),
    "safetensors, bfloat16": ("safetensors", "bfloat16", "bfloat16"),
    "keras, bfloat16": ("keras", "bfloat16", "preset"),
    "torch, bfloat16": ("torch", "bfloat16", "model.ckpt"),
}


def measured(path: Path) -> tuple[int, int, int, float]:
    """Bytes of the arrays, peak bytes after opening, peak bytes after reading, and seconds."""
    done = subprocess.run([sys.executable, "-c", CHILD, str(path)], check=True, capture_output=True, text=True)
    arrays, opened, peak, took = json.loads(done.stdout)
    return arrays, opened, peak, took


def main() -> None:
    from gemmary.formats.checkpoint import open_checkpoint, write_checkpoint
    from gemmary.formats.locate import locate

    default = locate()
    source, rows = open_checkpoint(default), []
    for name, (format, dtype, file) in FILES.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, file) if file else default
            if file:
                write_checkpoint(source, path, format=format, dtype=dtype)
            arrays, opened, peak, took = measured(path)
        megabytes = (f"{size / 1e6:.0f}" for size in (arrays, opened, peak))
        rows.append((name, *megabytes, f"{peak / arrays:.3f}", f"{took:.1f}"))
    columns = ("file", "arrays, MB", "peak after opening, MB", "peak after reading, MB", "peak / arrays", "seconds")
    record("loading", columns, rows, command="python benchmarks/loading.py")


if __name__ == "__main__":
    main()
