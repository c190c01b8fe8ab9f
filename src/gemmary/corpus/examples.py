# SPDX-License-Identifier: Apache-2.0
"""Rows to token ids, and for each token whether it is to be learned.

    kind          fields                                                              learned
    chat          messages of role and content, or conversations of from and value    its replies
    instruction   prompt, instruction or question, with input or context if any;
                  response, output, answer or completion                              the reply
    preference    a prompt of either kind; chosen, rejected                           both replies
    text          text                                                                all but BOS

A reply is learned with its end of turn, as `text/chat.py` lays them out. A source holds rows of one kind. A field
`system` stands before a prompt; fields of other names are left alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gemmary.base.errors import FileError, InputError
from gemmary.corpus.rows import Row, files, rows
from gemmary.formats.sentencepiece import SPACE
from gemmary.text.chat import Message, render
from gemmary.text.tokenizer import Tokenizer

_TALKS = ("messages", "conversations")
_PROMPTS = ("prompt", "instruction", "question")
_INPUTS = ("input", "context")
_REPLIES = ("response", "output", "answer", "completion")
_ROLES = {"human": "user", "gpt": "model", "assistant": "model"}


@dataclass(frozen=True, eq=False, slots=True)
class Example:
    """T token ids, for each whether it is learned, and the number of its row in its file.

    >>> Example(np.array([2, 9], np.int32), np.array([False, True]), 1).row
    1
    """

    ids: NDArray[np.int32]  # T
    mask: NDArray[np.bool_]  # T; never true for the first, which nothing predicts
    row: int


@dataclass(eq=False)
class Loaded:
    """What came of a source: every row is kept, a duplicate or too long; one of text may be several examples.

    >>> Loaded((), rows=3, duplicates=2).kept
    1
    """

    files: tuple[Path, ...]
    kind: str = ""  # chat, instruction, preference or text
    examples: list[Example] = field(default_factory=list)  # of preferences, the chosen replies
    rejected: list[Example] = field(default_factory=list)  # of preferences, one for each of `examples`
    rows: int = 0
    duplicates: int = 0  # rows with the ids of an earlier one, left out
    too_long: int = 0  # rows of more tokens than fit, left out
    cut: int = 0  # rows of more tokens than fit, shortened, or split where they are text
    tokens: int = 0  # in all examples
    learned: int = 0  # tokens of those

    @property
    def kept(self) -> int:
        """The number of rows that gave examples."""
        return self.rows - self.duplicates - self.too_long

    def _add(self, sides: Sequence[Example]) -> None:
        for kept, side in zip((self.examples, self.rejected), sides, strict=False):
            kept.append(side)
            self.tokens += len(side.ids)
            self.learned += int(side.mask.sum())


def load(source: str | Path, tokenizer: Tokenizer, *, length: int, cut: bool = False) -> Loaded:
    """The examples of a file, a folder or `hf://datasets/owner/name[/file]`, none of more than `length` tokens.

    A longer row is left out. With `cut` it loses its end, and a text is split instead. Raises InputError for a length
    below 2, FileError, with file and row, for rows that cannot be used, and what reading and downloading raise.

    >>> import tempfile
    >>> from gemmary.formats.sentencepiece import Vocabulary
    >>> pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "a", "b"]
    >>> tokenizer = Tokenizer(Vocabulary.from_rows(pieces, [0] * 6, [3, 3, 3, 2, 1, 1]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "a.jsonl").write_text('{"text": "ab"}' + chr(10) + '{"text": "aabb"}', "utf-8")
    ...     loaded = load(folder, tokenizer, length=4)
    >>> [example.ids.tolist() for example in loaded.examples], loaded.too_long
    ([[2, 4, 5, 1]], 1)
    """
    if length < 2:
        raise InputError(f"expected a length >= 2, got {length}: give the number of tokens that a row may have")
    loaded, seen = Loaded(tuple(files(source))), set[bytes]()
    for row in (row for file in loaded.files for row in rows(file)):
        loaded.rows += 1
        try:
            loaded.kind = _same_kind(loaded.kind, row.values)
            sides = _sides(tokenizer, loaded.kind, row)
        except InputError as error:
            raise FileError(f"{error} ({row.place})") from None
        digest = blake2b(b"|".join(side.ids.tobytes() for side in sides), digest_size=16).digest()
        is_long = any(len(side.ids) > length for side in sides)
        parts = [sides] if not is_long else _cut(loaded.kind, sides, length) if cut else []
        if digest in seen:
            loaded.duplicates += 1
        elif not parts:
            loaded.too_long += 1
        else:
            loaded.cut += is_long
            for part in parts:
                loaded._add(part)
        seen.add(digest)
    if not loaded.examples:
        got = f"none among {loaded.rows}: allow more, or cut them" if loaded.rows else "no rows: write some"
        raise FileError(f"expected rows of at most {length} tokens in {source}, got {got}")
    return loaded


def preview(example: Example, tokenizer: Tokenizer) -> str:
    """What an example says, to look at: ¦ between tokens, what is learned between ⟦ and ⟧.

    A line ends after ↵; other characters that do not print are escaped.

    >>> from gemmary.formats.sentencepiece import Vocabulary
    >>> pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "▁a", "b"]
    >>> tokenizer = Tokenizer(Vocabulary.from_rows(pieces, [0] * 6, [3, 3, 3, 2, 1, 1]))
    >>> print(preview(Example(np.array([2, 4, 5, 1], np.int32), np.array([False, False, True, True]), 1), tokenizer))
    <bos>¦ a⟦b¦<eos>⟧
    """
    runs = groupby(zip(example.ids.tolist(), example.mask.tolist(), strict=True), key=lambda token: token[1])
    shown = [(learned, "¦".join(_shown(tokenizer.pieces[token]) for token, _ in run)) for learned, run in runs]
    return "".join(f"⟦{text}⟧" if learned else text for learned, text in shown)


def _shown(piece: str) -> str:
    signs = piece.replace(SPACE, " ")
    return "".join("↵\n" if sign == "\n" else sign if sign.isprintable() else ascii(sign)[1:-1] for sign in signs)


def _same_kind(kind: str, values: Mapping[str, object]) -> str:
    if {"chosen", "rejected"} <= values.keys():
        found = "preference"
    elif any(key in values for key in _TALKS):
        found = "chat"
    elif any(key in values for key in _PROMPTS):
        found = "instruction"
    elif "text" in values:
        found = "text"
    else:
        raise InputError(
            "expected messages, prompt and response, prompt, chosen and rejected, or text, got "
            f"{', '.join(sorted(values))[:200] or 'no fields'}: rename the fields"
        )
    if found != "text" and values.get("label") is False:  # of pairs taken apart (KTO)
        raise InputError("expected a reply to learn, got one labelled false: leave such rows out")
    if kind not in ("", found):
        raise InputError(f"expected rows of one kind, got {found} after {kind}: keep the kinds in separate sources")
    return found


def _sides(tokenizer: Tokenizer, kind: str, row: Row) -> list[Example]:
    """What a row says: of a preference the chosen and the rejected conversation, otherwise one thing."""
    if kind == "text":
        ids = [tokenizer.bos_id, *tokenizer.encode(_words(row.values, "text")), tokenizer.eos_id]
        return [_example(ids, [False] + [True] * (len(ids) - 1), row.number)]
    talks = [_prompt(row.values)]
    if kind != "chat":
        names = ("chosen", "rejected") if kind == "preference" else (_reply(row.values),)
        talks = [_replied(talks[0], row.values, name) for name in names]
    rendered = [render(tokenizer, _checked(talk)) for talk in talks]
    return [_example(each.ids, each.mask, row.number) for each in rendered]


def _example(ids: Sequence[int], mask: Sequence[bool], row: int) -> Example:
    return Example(np.array(ids, np.int32), np.array(mask, np.bool_), row)


def _cut(kind: str, sides: Sequence[Example], length: int) -> list[list[Example]]:
    """A row in parts that fit: none when nothing learned would be left of a conversation."""
    if kind != "text":
        short = [Example(side.ids[:length].copy(), side.mask[:length].copy(), side.row) for side in sides]
        return [short] if all(side.mask.any() for side in short) else []
    [(ids, mask, row)] = [(side.ids, side.mask, side.row) for side in sides]
    places = [np.r_[0, at : min(at + length - 1, len(ids))] for at in range(1, len(ids), length - 1)]  # BOS in each
    return [[Example(ids[place], mask[place], row)] for place in places]


def _checked(messages: list[Message]) -> list[Message]:
    if not messages or messages[-1].role != "model":
        last = repr(messages[-1].role) if messages else "none"
        raise InputError(f"expected a reply as the last message, got {last}: end with one of role 'assistant'")
    if any(not message.content.strip() for message in messages):
        raise InputError("expected words in every message, got an empty one: fill or remove it")
    return messages


def _prompt(values: Mapping[str, object]) -> list[Message]:
    """The messages before the reply, or of a chat all messages; none where a preference has them in its replies."""
    system = [Message("system", _words(values, "system"))] if values.get("system") else []
    known = [key for key in (*_TALKS, *_PROMPTS) if key in values]
    if not known:
        return system
    if not isinstance(values[known[0]], str):
        return system + _messages(values[known[0]])
    inputs = [_words(values, key) for key in _INPUTS if values.get(key)]
    return [*system, Message("user", "\n\n".join([_words(values, known[0]), *inputs]))]


def _replied(prompt: list[Message], values: Mapping[str, object], name: str) -> list[Message]:
    """A prompt with its reply; a reply that is a whole conversation has its prompt inside."""
    if isinstance(values[name], str):
        if not prompt:
            raise InputError(f"expected a prompt beside {name}, got none: write it in a field of its own")
        return [*prompt, Message("model", _words(values, name))]
    messages = _messages(values[name])
    return messages if messages and messages[0].role != "model" else prompt + messages


def _messages(value: object) -> list[Message]:
    """Messages of either spelling, one or a list; empty system messages are nothing."""
    messages = []
    for each in value if isinstance(value, list) else [value]:
        fields = each if isinstance(each, dict) else {}
        role, content = fields.get("role", fields.get("from")), fields.get("content", fields.get("value"))
        if not isinstance(role, str) or not isinstance(content, str):
            raise InputError(f"expected messages with role and content as text, got {str(each)[:80]!r}: write them so")
        if role != "system" or content.strip():
            messages.append(Message(_ROLES.get(role, role), content))
    return messages


def _reply(values: Mapping[str, object]) -> str:
    """The name of the field with the reply."""
    for name in _REPLIES:
        if name in values:
            return name
    raise InputError(f"expected one of {', '.join(_REPLIES)}, got {', '.join(sorted(values))[:200]}: add the reply")


def _words(values: Mapping[str, object], key: str) -> str:
    value = values[key]
    if not isinstance(value, str) or not value.strip():
        got = "an empty text" if isinstance(value, str) else type(value).__name__
        raise InputError(f"expected words in {key}, got {got}: fill it or leave the row out")
    return value
