# SPDX-License-Identifier: Apache-2.0
"""Gemma 3's tokenizer from the embedded default, small ones made by hand, and `sentencepiece` with the same rows."""

from collections.abc import Callable, Iterator
from pathlib import Path
from zipfile import ZipFile, is_zipfile

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as proto

from gemmary.formats.gguf import read_gguf
from gemmary.formats.sentencepiece import Kind, Vocabulary
from gemmary.text.tokenizer import Tokenizer

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@pytest.fixture(scope="session")
def gemma(default_checkpoint: Path) -> Tokenizer:
    """The 262,144 pieces of Gemma 3."""
    vocabulary = read_gguf(default_checkpoint).vocabulary
    assert vocabulary is not None
    return Tokenizer(vocabulary)


@pytest.fixture(scope="session")
def reference(gemma: Tokenizer) -> sentencepiece.SentencePieceProcessor:
    """The `sentencepiece` library with Gemma 3's rows."""
    return library_of(gemma.vocabulary)


@pytest.fixture(scope="session")
def library() -> Callable[[Vocabulary], sentencepiece.SentencePieceProcessor]:
    """The `sentencepiece` library with any rows."""
    return library_of


@pytest.fixture(scope="session")
def vocabulary_of() -> Callable[..., Vocabulary]:
    """A vocabulary of Gemma's specials, some user-defined pieces and some normal ones, the best first."""
    return small_vocabulary


def small_vocabulary(normal: list[str], frozen: list[str], has_bytes: bool = True) -> Vocabulary:
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    spelled = BYTES if has_bytes else []
    kinds = [3, 3, 3, 2, 3, 3] + [Kind.BYTE] * len(spelled) + [4] * len(frozen) + [1] * len(normal)
    scores = [0.0] * (len(kinds) - len(normal)) + [-float(place) for place in range(len(normal))]
    return Vocabulary.from_rows([*specials, *spelled, *frozen, *normal], scores, kinds)


def library_of(vocabulary: Vocabulary) -> sentencepiece.SentencePieceProcessor:
    """Built with protobuf's own classes, so that it also stands against our reader and writer."""
    model = proto.ModelProto()
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type, trainer.vocab_size = proto.TrainerSpec.BPE, vocabulary.size
    trainer.byte_fallback = bool((vocabulary.kinds == Kind.BYTE).any())
    trainer.pad_id, trainer.eos_id, trainer.bos_id, trainer.unk_id = 0, 1, 2, 3
    trainer.pad_piece, trainer.eos_piece, trainer.bos_piece = "<pad>", "<eos>", "<bos>"
    normalizer.name, normalizer.escape_whitespaces = "identity", True
    normalizer.add_dummy_prefix = normalizer.remove_extra_whitespaces = False
    for piece, score, kind in zip(
        vocabulary.pieces, vocabulary.scores.tolist(), vocabulary.kinds.tolist(), strict=True
    ):
        model.pieces.add(piece=piece, score=score, type=kind)
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


@pytest.fixture(scope="session")
def shared_texts(shared_data: Path) -> Callable[[], Iterator[tuple[str, str]]]:
    """Name and text of every file, and of every member of a zip, in the corpora and benchmarks that is UTF-8."""

    def texts() -> Iterator[tuple[str, str]]:
        for path in sorted([*shared_data.glob("corpora/**/*"), *shared_data.glob("benchmarks/**/*")]):
            contents: Iterator[tuple[str, bytes]] = iter([(path.name, path.read_bytes())] if path.is_file() else [])
            if path.is_file() and is_zipfile(path):
                archive = ZipFile(path)
                contents = ((name, archive.read(name)) for name in archive.namelist())
            for name, data in contents:
                try:
                    yield name, data.decode()
                except UnicodeDecodeError:
                    continue  # an image or another encoding: no text of ours

    return texts
