# SPDX-License-Identifier: Apache-2.0
"""Vocabularies of one's own: learn one from text, take a subset of a larger one, extend one by pieces of a language.

    learn(texts, size)             -> vocabulary                  Gemma's rules, Gemma's special pieces at their ids
    subset(vocabulary, uses, size) -> vocabulary, kept ids        rows: prune_rows(embedding, kept ids)
    extend(vocabulary, pieces)     -> vocabulary, composition     rows: extend_rows(embedding, composition)

A subset cuts a text it covers into the same pieces as the whole: with a piece it keeps every piece that merging makes
on the way to it, so merging takes the same steps. An extension leaves the ids of all old pieces as they are.
"""

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemmary.base.errors import InputError, MissingExtraError
from gemmary.formats.sentencepiece import SPACE, Kind, Vocabulary, parse_sentencepiece
from gemmary.text.merge import merge
from gemmary.text.tokenizer import Tokenizer, require_utf8

# Ids 4 to 107 and from 108 on of the Gemma 1 and 2 vocabulary (google-deepmind/gemma, gemma/gm/text/_tokenizer.py).
CONTROL_PIECES = (
    *("<mask>", "<2mass>", "[@BOS@]"),
    *(f"<unused{number}>" for number in range(99)),
    *("<start_of_turn>", "<end_of_turn>"),
)
WHITESPACE_PIECES = (*("\n" * count for count in range(1, 32)), *(SPACE * count for count in range(2, 32)))

_GEMMA_RULES: dict[str, Any] = {
    "model_type": "bpe",
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "split_digits": True,
    "byte_fallback": True,
    "max_sentence_length": 1 << 24,
    "pad_id": 0,
    "eos_id": 1,
    "bos_id": 2,
    "unk_id": 3,
    "pad_piece": "<pad>",
    "eos_piece": "<eos>",
    "bos_piece": "<bos>",
    "unk_piece": "<unk>",
}


def learn(texts: Iterable[str], size: int, *, coverage: float = 0.9995) -> Vocabulary:
    """Learn a BPE vocabulary of `size` pieces: digits split, whitespace kept, bytes for characters it does not know.

    `coverage` is the share of the characters in the texts that get a piece of their own. Learning is the
    `sentencepiece` library's, line by line, so no piece reaches over a newline. Raises MissingExtraError without it and
    InputError for a size that is too small for the 429 special pieces and the characters or too large for the texts.

    >>> vocabulary = learn(["low lower lowest new newer newest 1984 "] * 9, 450)
    >>> vocabulary.size, vocabulary.pieces[:5], vocabulary.pieces[106], "low" in vocabulary.ids
    (450, ('<pad>', '<eos>', '<bos>', '<unk>', '<mask>'), '<start_of_turn>', True)
    """
    try:
        import sentencepiece
    except ImportError:
        raise MissingExtraError.of("learning a vocabulary", "the sentencepiece library", "learn") from None
    out = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(texts),
            model_writer=out,
            vocab_size=size,
            character_coverage=coverage,
            control_symbols=list(CONTROL_PIECES),
            user_defined_symbols=list(WHITESPACE_PIECES),
            **_GEMMA_RULES,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise InputError(f"expected a size that fits the texts, got {size}: {str(error).rpartition('] ')[2]}") from None
    return parse_sentencepiece(out.getvalue(), "the learned vocabulary")


def count_pieces(tokenizer: Tokenizer, texts: Iterable[str]) -> NDArray[np.int64]:
    """How often each piece is used in some texts, by id: the measure `subset` chooses by.

    >>> from gemmary.formats.sentencepiece import Vocabulary
    >>> rows = Vocabulary.from_rows(["<pad>", "<eos>", "<bos>", "<unk>", "a", "b"], [0] * 6, [3, 3, 3, 2, 1, 1])
    >>> count_pieces(Tokenizer(rows), ["aba", "a"]).tolist()
    [0, 0, 0, 0, 3, 1]
    """
    uses = np.zeros(tokenizer.vocab_size, np.int64)
    for text in texts:
        uses += np.bincount(np.array(tokenizer.encode(text), np.int64), minlength=tokenizer.vocab_size)
    return uses


def subset(vocabulary: Vocabulary, uses: NDArray[np.int64], size: int) -> tuple[Vocabulary, NDArray[np.int64]]:
    """The `size` most used pieces that are closed under merging, and their old ids, ascending.

    All pieces but NORMAL ones stay, except `<unused...>`; unused places go to the pieces learned first. Raises
    InputError for a size too small for those, and for `uses` that are not one count for each piece.

    >>> from gemmary.formats.sentencepiece import Vocabulary
    >>> pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "a", "b", "c", "ab", "abc"]
    >>> rows = Vocabulary.from_rows(pieces, [0, 0, 0, 0, -3, -4, -5, -1, -2], [3, 3, 3, 2, 1, 1, 1, 1, 1])
    >>> smaller, kept = subset(rows, count_pieces(Tokenizer(rows), ["ab ab ab c"]), 8)
    >>> smaller.pieces[4:], kept.tolist()
    (('a', 'b', 'c', 'ab'), [0, 1, 2, 3, 4, 5, 6, 7])
    """
    if uses.shape != (vocabulary.size,):
        raise InputError(f"expected {vocabulary.size} counts, one a piece, got {uses.shape}: use count_pieces")
    normal = np.flatnonzero(vocabulary.kinds == Kind.NORMAL)
    chosen = {
        piece
        for piece, kind in zip(vocabulary.pieces, vocabulary.kinds.tolist(), strict=True)
        if kind != Kind.NORMAL and not piece.startswith("<unused")
    }
    if size < len(chosen):
        raise InputError(f"expected room for the {len(chosen)} special pieces, got a size of {size}: ask for more")
    costs = _costs(vocabulary)
    by_use = normal[np.lexsort((-vocabulary.scores[normal], -uses[normal]))]
    for piece in (vocabulary.pieces[at] for at in by_use.tolist()):
        if len(chosen) == size:
            break
        needed = _steps_to(piece, costs, chosen)
        if len(chosen) + len(needed) <= size:
            chosen |= needed
    kept = np.array(sorted(vocabulary.ids[piece] for piece in chosen), np.int64)
    pieces = [vocabulary.pieces[at] for at in kept.tolist()]
    return Vocabulary.from_rows(pieces, vocabulary.scores[kept], vocabulary.kinds[kept]), kept


def extend(vocabulary: Vocabulary, pieces: Iterable[str]) -> tuple[Vocabulary, list[tuple[int, ...]]]:
    """Add pieces, best first, after the old ones; for each new row the old ids its text had until now.

    What merging needs on the way to a new piece is added before it, so every new piece is reached; one that no merging
    reaches, since a user-defined piece cuts it, and one that is there already are left out. Old merges go first.

    >>> from gemmary.formats.sentencepiece import Vocabulary
    >>> rows = Vocabulary.from_rows(["<pad>", "<eos>", "<bos>", "<unk>", "a", "b"], [0] * 6, [3, 3, 3, 2, 1, 1])
    >>> larger, composition = extend(rows, ["abba"])
    >>> larger.pieces[6:], composition, Tokenizer(larger).encode("abba")
    (('ab', 'abb', 'abba'), [(4, 5), (4, 5, 5), (4, 5, 5, 4)], [8])
    """
    costs = _costs(vocabulary)
    lowest = float(np.floor(vocabulary.scores.min(initial=0.0)))
    added: list[str] = []
    frozen = compress(vocabulary.pieces, vocabulary.kinds == Kind.USER_DEFINED)
    cuts = re.compile("|".join(map(re.escape, frozen)) or "(?!)").search
    for piece in pieces:
        require_utf8(piece)
        if not piece or piece in costs or cuts(piece):
            continue
        trial = [step for step in _way_to(piece, costs) if step not in vocabulary.ids]
        costs |= {step: len(added) + place - lowest for place, step in enumerate(trial, start=1)}
        if merge(piece, costs) == [piece]:
            added += trial
        else:
            for step in trial:
                del costs[step]
    scores = [*vocabulary.scores.tolist(), *(-costs[piece] for piece in added)]
    kinds = [*vocabulary.kinds.tolist(), *[Kind.NORMAL] * len(added)]
    before = Tokenizer(vocabulary)
    composition = [tuple(before.encode(piece)) for piece in added]
    return Vocabulary.from_rows([*vocabulary.pieces, *added], scores, kinds), composition


def normal_pieces(vocabulary: Vocabulary) -> list[str]:
    """The learned pieces of a vocabulary, best first: what `extend` takes over from another language's.

    >>> from gemmary.formats.sentencepiece import Vocabulary
    >>> pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "a", "aa"]
    >>> normal_pieces(Vocabulary.from_rows(pieces, [0, 0, 0, 0, -2, -1], [3, 3, 3, 2, 1, 1]))
    ['aa', 'a']
    """
    costs = _costs(vocabulary)
    return sorted(costs, key=costs.__getitem__)


def prune_rows(embedding: NDArray[Any], kept: NDArray[np.int64]) -> NDArray[Any]:
    """The rows [V D] of the pieces a subset kept, in its order.

    >>> prune_rows(np.array([[0.0], [1.0], [2.0]]), np.array([0, 2])).tolist()
    [[0.0], [2.0]]
    """
    if kept.size and int(kept.max()) >= len(embedding):
        raise InputError(
            f"expected an embedding of {int(kept.max()) + 1} rows or more, got {len(embedding)}: use its own"
        )
    return embedding[kept]


def extend_rows(embedding: NDArray[Any], composition: Sequence[tuple[int, ...]]) -> NDArray[Any]:
    """The rows [V D] with one more for each new piece: the mean, taken in float64, of the rows its text had until now.

    >>> extend_rows(np.array([[0.0], [1.0], [2.0]]), [(1, 2)]).tolist()
    [[0.0], [1.0], [2.0], [1.5]]
    """
    highest = max((max(ids) for ids in composition), default=0)
    if highest >= len(embedding):
        raise InputError(f"expected an embedding of {highest + 1} rows or more, got {len(embedding)}: use its own")
    means = [embedding[list(ids)].astype(np.float64).mean(axis=0).astype(embedding.dtype) for ids in composition]
    return np.concatenate([embedding, np.stack(means)]) if means else embedding.copy()


def _lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        require_utf8(text)
        yield from (line for line in text.split("\n") if line)


def _costs(vocabulary: Vocabulary) -> dict[str, float]:
    """The NORMAL pieces with their negative scores, as merging wants them."""
    normal = np.flatnonzero(vocabulary.kinds == Kind.NORMAL)
    return {vocabulary.pieces[at]: -score for at, score in zip(normal, vocabulary.scores[normal].tolist(), strict=True)}


def _steps_to(piece: str, costs: dict[str, float], known: set[str]) -> set[str]:
    """The piece and every piece made on the way to it that is not known yet; none when merging never makes it."""
    steps, open_pieces = set[str](), [piece]
    while open_pieces:
        step = open_pieces.pop()
        if step in known or step in steps or step not in costs:
            continue
        steps.add(step)
        if len(step) > 1:
            cost = costs.pop(step)
            halves = merge(step, costs)  # where merging stands just before it would make the step itself
            costs[step] = cost
            if len(halves) != 2:
                return set()
            open_pieces += halves
    return steps


def _way_to(piece: str, costs: dict[str, float]) -> list[str]:
    """The pieces to add, in order, so that merging makes `piece`: unknown characters, then its parts from the left."""
    parts = merge(piece, costs)
    joined = ["".join(parts[:count]) for count in range(2, len(parts) + 1)]
    return list(dict.fromkeys(step for step in [*parts, *joined] if step not in costs))
