# SPDX-License-Identifier: Apache-2.0
"""A fuzzer of what opens a model: GGUF files and Hugging Face folders, read and then loaded by the native engine.

    python tests/formats/fuzz_open.py -max_total_time=600 build/fuzz/files      needs atheris

Whatever the bytes are, an error must be one of ours. An input is the letter G and a GGUF file, or the letter H and
three files, each after its length in four bytes but the last: config.json, tokenizer.model and model.safetensors.
"""

import gc
import sys
import tempfile
from pathlib import Path
from types import FunctionType

import numpy as np

from gemmary.base.config import GemmaConfig
from gemmary.base.errors import GemmaryError
from gemmary.formats.checkpoint import write_checkpoint
from gemmary.formats.content import Checkpoint
from gemmary.formats.gguf import read_gguf
from gemmary.formats.safetensors import read_safetensors
from gemmary.formats.sentencepiece import Vocabulary
from gemmary.formats.tensors import weights
from gemmary.generate.generator import Chunk
from gemmary.generate.native_engine import NativeEngine

FOLDER = ("config.json", "tokenizer.model", "model.safetensors")


def open_bytes(data: bytes) -> None:
    """Open the input, load it where that is quickly done, and run a token; only errors of ours are caught."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            checkpoint = read_gguf(_gguf(data[1:], folder)) if data[:1] == b"G" else _folder(data[1:], folder)
            if checkpoint.config.num_params < 10**6:
                for read in checkpoint.tensors.values():
                    read()
                engine = NativeEngine(checkpoint, max_length=8, num_threads=1)
                assert engine.logits([Chunk(slot=0, start=0, ids=(0,))]).size == checkpoint.config.vocab_size
        except GemmaryError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000, error


def _gguf(data: bytes, folder: Path) -> Path:
    (folder / "m.gguf").write_bytes(data)
    return folder / "m.gguf"


def _folder(data: bytes, folder: Path) -> Checkpoint:
    for name in FOLDER[:-1]:
        end = 4 + int.from_bytes(data[:4], "little")
        (folder / name).write_bytes(data[4:end])
        data = data[end:]
    (folder / FOLDER[-1]).write_bytes(data)
    return read_safetensors(folder)


def write_seeds(corpus: Path) -> None:
    """Small models of three generations in each format, to begin from."""
    corpus.mkdir(parents=True, exist_ok=True)
    sizes = {"vocab_size": 12, "num_layers": 1, "model_dim": 32, "num_heads": 2, "num_kv_heads": 1, "mlp_dim": 32}
    post = {"post_norm": True, "query_scale": 16**-0.5, "head_dim": 16}
    configs = {
        "1": GemmaConfig(**sizes, head_dim=16, query_scale=16**-0.5),
        "2": GemmaConfig(**sizes, **post, window_pattern=(4, None), attn_softcap=50.0, final_softcap=30.0),
        "3": GemmaConfig(**sizes, **post, window_pattern=(*(4,) * 5, None), qk_norm=True, rope_base=1e6),
    }
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "a", "b", "ab", "\u2581", "\u2581a", "\u2581b", "  ", "c"]
    vocabulary = Vocabulary.from_rows(pieces, -np.arange(12), [3, 3, 3, 2, 1, 1, 1, 1, 1, 1, 4, 1])
    for generation, config in configs.items():
        ones = {path: lambda row=row, c=config: np.ones(row.shape(c), np.float32) for path, row, _ in weights(config)}
        checkpoint = Checkpoint(config=config, tensors=ones, vocabulary=vocabulary)
        with tempfile.TemporaryDirectory() as name:
            for dtype in ("float16", "q8_0", "q4_0"):
                write_checkpoint(checkpoint, Path(name, dtype), format="gguf", dtype=dtype)  # type: ignore[arg-type]
                (corpus / f"{generation}-{dtype}").write_bytes(b"G" + Path(name, dtype).read_bytes())
            write_checkpoint(checkpoint, Path(name, "hf"), format="safetensors", dtype="bfloat16")
            files = [Path(name, "hf", file).read_bytes() for file in FOLDER]
            heads = [len(files[0]).to_bytes(4, "little"), len(files[1]).to_bytes(4, "little"), b""]
            parts = (head + file for head, file in zip(heads, files, strict=True))
            (corpus / f"{generation}-hf").write_bytes(b"H" + b"".join(parts))


if __name__ == "__main__":
    import atheris  # not in the test extra

    write_seeds(Path(sys.argv[-1]))
    for each in gc.get_objects():  # once imported: atheris does not know the loader of an editable install
        if isinstance(each, FunctionType) and (each.__module__ or "").startswith("gemmary."):
            atheris.instrument_func(each)
    atheris.Setup(sys.argv, open_bytes)
    atheris.Fuzz()
