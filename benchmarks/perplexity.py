# SPDX-License-Identifier: Apache-2.0
"""Perplexity of a text by the float32 reference, the native engine and llama.cpp, on the same file and windows.

    python benchmarks/perplexity.py TEXT [--model MODEL.gguf] [--tokens 8192] [--no-record]

The reference is the Keras engine in float32 on the dequantised weights, which tests/model/test_real.py compares with
transformers. llama.cpp is called through the C functions that xllamacpp's library exports, with its default settings:
a window of 512 fits its default context and runs as one batch.
"""

import argparse
import ctypes
import math
from pathlib import Path

import numpy as np
from record import record

import gemmary
from gemmary.formats.locate import embedded_default
from gemmary.generate.native_engine import default_threads
from gemmary.generate.perplexity import WINDOW, perplexity
from gemmary.generate.request import Score


class _Settings(ctypes.Structure):
    """llama.cpp's default settings, passed on as they came: larger than any of its structures."""

    _fields_ = (("bytes", ctypes.c_uint8 * 1024),)


class _Batch(ctypes.Structure):
    """llama_batch of llama.h: what is NULL is filled in by llama_decode."""

    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.c_void_p),
        ("n_seq_id", ctypes.c_void_p),
        ("seq_id", ctypes.c_void_p),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


class LlamaCppScores:
    """The part of a Generator that perplexity() asks for, in llama.cpp."""

    def __init__(self, path: Path, tokenizer: "gemmary.Tokenizer", num_threads: int) -> None:
        import xllamacpp.xllamacpp

        self.tokenizer = tokenizer
        self._library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
        pointer = ctypes.c_void_p
        declarations = {
            "llama_model_default_params": (_Settings, ()),
            "llama_context_default_params": (_Settings, ()),
            "llama_model_load_from_file": (pointer, (ctypes.c_char_p, _Settings)),
            "llama_init_from_model": (pointer, (pointer, _Settings)),
            "llama_set_n_threads": (None, (pointer, ctypes.c_int32, ctypes.c_int32)),
            "llama_get_memory": (pointer, (pointer,)),
            "llama_memory_clear": (None, (pointer, ctypes.c_bool)),
            "llama_decode": (ctypes.c_int32, (pointer, _Batch)),
            "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), (pointer, ctypes.c_int32)),
        }
        for name, (result, arguments) in declarations.items():
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, arguments
        model = self._library.llama_model_load_from_file(str(path).encode(), self._library.llama_model_default_params())
        self._context = self._library.llama_init_from_model(model, self._library.llama_context_default_params())
        if not model or not self._context:
            raise SystemExit(f"expected a file that llama.cpp loads, got {path}")
        self._library.llama_set_n_threads(self._context, num_threads, num_threads)

    def score(self, sequences: list[list[int]]) -> list[Score]:
        return [self._score(ids) for ids in sequences]

    def _score(self, ids: list[int]) -> Score:
        count, library = len(ids) - 1, self._library
        library.llama_memory_clear(library.llama_get_memory(self._context), True)
        batch = _Batch(
            count, (ctypes.c_int32 * count)(*ids[:-1]), None, None, None, None, (ctypes.c_int8 * count)(*[1] * count)
        )
        if status := library.llama_decode(self._context, batch):
            raise SystemExit(f"expected llama.cpp to run {count} tokens, got status {status}")
        log_probs, is_greedy = np.empty(count), np.empty(count, np.bool_)
        for at, target in enumerate(ids[1:]):
            pointer = library.llama_get_logits_ith(self._context, at)
            logits = np.ctypeslib.as_array(pointer, (len(self.tokenizer.pieces),)).astype(np.float64)
            best = logits.max()
            log_probs[at] = logits[target] - best - math.log(np.exp(logits - best).sum())
            is_greedy[at] = logits[target] == best
        return Score(log_probs=log_probs, is_greedy=is_greedy)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--no-record", action="store_true")
    options = parser.parse_args()
    path = options.model or embedded_default()
    tokenizer = gemmary.load_tokenizer(str(path))
    ids = tokenizer.encode(options.text.read_text("utf-8"))[: options.tokens]
    sizes = {"max_length": WINDOW, "num_slots": 1}
    programs = {
        "float32 reference": lambda: gemmary.load(str(path), engine="keras", **sizes),
        "native": lambda: gemmary.load(str(path), engine="native", **sizes),
        "llama.cpp": lambda: LlamaCppScores(path, tokenizer, default_threads()),
    }
    rows, reference = [], math.nan
    for name, load in programs.items():
        if options.only and name not in options.only:
            continue
        found = perplexity(load(), ids)
        reference = found if name == "float32 reference" else reference
        rows.append([name, f"{found:.4f}", f"{100 * (found / reference - 1):+.2f}%"])
        print(*rows[-1], flush=True)
    columns = [f"{path.stem}, {len(ids):,} tokens of {options.text.name}", "perplexity", "from the reference"]
    if not options.no_record:
        record("perplexity", columns, rows, command=f"python benchmarks/perplexity.py {options.text.name}")


if __name__ == "__main__":
    main()
