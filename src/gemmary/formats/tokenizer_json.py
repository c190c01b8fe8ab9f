# SPDX-License-Identifier: Apache-2.0
"""tokenizer.json of the `tokenizers` library: a BPE vocabulary with merges and added tokens, read and written.

model.vocab            piece -> id
model.merges           pairs, best first      <->  scores: a piece's score is minus the place of its first merge
model.unk_token                               <->  UNKNOWN
added_tokens           special                <->  CONTROL
                       not special            <->  USER_DEFINED; written with spaces, which the library looks for
"""

import json
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemmary.base.errors import FileError
from gemmary.formats.sentencepiece import BYTE_PIECES, SPACE, Kind, Vocabulary
from gemmary.formats.storage import FileBytes, written_whole

_LARGEST = 1 << 28  # bytes; Gemma 3's own file is 33 MB
_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}


def read_tokenizer_json(path: Path) -> Vocabulary:
    """Read a tokenizer.json with Gemma's rules; `Vocabulary.from_rows` checks the pieces.

    Raises FileError for a file that is damaged, too large, not BPE, that normalises otherwise than by writing spaces as
    U+2581, whose ids have gaps, or whose merges are no order of pieces.

    >>> import tempfile
    >>> rows = Vocabulary.from_rows(["<pad>", "<eos>", "<bos>", "<unk>", "a", "aa"], [0] * 6, [3, 3, 3, 2, 1, 1])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_tokenizer_json(rows, Path(folder, "tokenizer.json"))
    ...     copy = read_tokenizer_json(Path(folder, "tokenizer.json"))
    >>> copy.pieces[4:], copy.scores[4:].tolist()
    (('a', 'aa'), [-1.0, 0.0])
    """
    content = _load(path)
    try:
        model = content["model"]
        unknown, has_bytes = model["unk_token"], bool(model["byte_fallback"])
        rules = (model["type"], content.get("normalizer"))
        ids: dict[str, int] = {str(piece): int(at) for piece, at in model["vocab"].items()}
        added = {str(token["content"]): (int(token["id"]), bool(token["special"])) for token in content["added_tokens"]}
        merges = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
        joined = [left + right for left, right in merges]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise FileError(f"expected a BPE tokenizer.json, got {path} with a wrong {error}: fetch it again") from None
    if rules != ("BPE", _SPACES):
        raise FileError(f"expected BPE with spaces written as {SPACE} in {path}, got {rules}: use a Gemma vocabulary")
    pieces = _by_id(path, ids | {piece: at for piece, (at, _) in added.items()})
    kinds = np.full(len(pieces), Kind.NORMAL, np.int8)
    for at, special in added.values():
        kinds[at] = Kind.CONTROL if special else Kind.USER_DEFINED
    if has_bytes:
        kinds[[ids[piece] for piece in BYTE_PIECES & ids.keys()]] = Kind.BYTE
    if unknown in ids:
        kinds[ids[unknown]] = Kind.UNKNOWN
    return Vocabulary.from_rows(pieces, _scores(path, pieces, kinds, joined), kinds)


def write_tokenizer_json(vocabulary: Vocabulary, path: Path) -> None:
    """Write a tokenizer.json that `tokenizers` and `transformers` load and give the same ids with, BOS put in front.

    One difference is theirs: they turn control pieces written out in a text into control ids.

    >>> import tempfile
    >>> rows = Vocabulary.from_rows(["<pad>", "<eos>", "<bos>", "<unk>", "a", "aa"], [0] * 6, [3, 3, 3, 2, 1, 1])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_tokenizer_json(rows, Path(folder, "tokenizer.json"))
    ...     json.loads(Path(folder, "tokenizer.json").read_text())["model"]["merges"]
    [['a', 'a']]
    """
    has_bytes = bool((vocabulary.kinds == Kind.BYTE).any())
    contents = [
        piece.replace(SPACE, " ") if kind == Kind.USER_DEFINED else piece
        for piece, kind in zip(vocabulary.pieces, vocabulary.kinds.tolist(), strict=True)
    ]
    bos = vocabulary.pieces[vocabulary.id_of("<bos>")]
    first = {"SpecialToken": {"id": bos, "type_id": 0}}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(_added_tokens(vocabulary, contents)),
        "normalizer": _SPACES,
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [first, *({"Sequence": {"id": part, "type_id": 0}} for part in "AB")],
            "special_tokens": {bos: {"id": bos, "ids": [vocabulary.id_of(bos)], "tokens": [bos]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                *([{"type": "ByteFallback"}] if has_bytes else []),
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": vocabulary.pieces[vocabulary.unknown_id],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": has_bytes,
            "ignore_merges": False,
            "vocab": {piece: at for at, piece in enumerate(contents)},
            "merges": list(_merges(vocabulary)),
        },
    }
    with written_whole(path) as file:
        file.write(json.dumps(content, ensure_ascii=False).encode())


def _load(path: Path) -> Mapping[str, Any]:
    file = FileBytes(path)
    if file.size > _LARGEST:
        raise FileError(f"expected at most {_LARGEST} bytes of JSON, got {file.size}: {path} is something else")
    try:
        content = json.loads(file.read(0, file.size).tobytes())
    except (ValueError, RecursionError) as error:
        raise FileError(f"expected JSON, got {path} with {error}: fetch it again") from None
    if not isinstance(content, dict):
        raise FileError(f"expected a JSON object, got a {type(content).__name__} in {path}: fetch it again")
    return content


def _by_id(path: Path, ids: Mapping[str, int]) -> list[str]:
    pieces = sorted(ids, key=ids.__getitem__)
    gap = next((at for at, piece in enumerate(pieces) if ids[piece] != at), None)
    if gap is not None:
        came = f"{ids[pieces[gap]]} in the place of {gap}"
        raise FileError(f"expected ids 0 to {len(pieces) - 1} once each, got {came} in {path}: fetch it again")
    return pieces


def _scores(path: Path, pieces: list[str], kinds: NDArray[np.int8], joined: list[str]) -> NDArray[np.float32]:
    """Minus the place of each piece in the order of the merges; the pieces no merge makes follow by id."""
    normal = {piece for piece, kind in zip(pieces, kinds.tolist(), strict=True) if kind == Kind.NORMAL}
    made = [piece for piece in joined if piece in normal]
    order = [second for first, second in pairwise(["", *made]) if second != first]
    if len(set(order)) != len(order):
        raise FileError(f"expected the merges of each piece together in {path}, got them apart: use a Gemma vocabulary")
    rest = normal.difference(order)
    order += [piece for piece in pieces if piece in rest]
    place = {piece: float(-at) for at, piece in enumerate(order)}
    return np.array([place.get(piece, 0.0) for piece in pieces], np.float32)


def _added_tokens(vocabulary: Vocabulary, contents: list[str]) -> Iterator[dict[str, Any]]:
    shape = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    for at in np.flatnonzero(np.isin(vocabulary.kinds, (Kind.CONTROL, Kind.UNKNOWN, Kind.USER_DEFINED))).tolist():
        special = vocabulary.kinds[at] != Kind.USER_DEFINED
        yield {"id": at, "content": contents[at], **shape, "special": bool(special)}


def _merges(vocabulary: Vocabulary) -> Iterator[tuple[str, str]]:
    """Every way to make each normal piece of two others, the best piece first."""
    normal = np.flatnonzero(vocabulary.kinds == Kind.NORMAL)
    best_first = normal[np.argsort(-vocabulary.scores[normal], kind="stable")]
    known = {vocabulary.pieces[at] for at in normal.tolist()}
    for at in best_first.tolist():
        piece = vocabulary.pieces[at]
        for cut in range(1, len(piece)):
            if piece[:cut] in known and piece[cut:] in known:
                yield piece[:cut], piece[cut:]
