# SPDX-License-Identifier: Apache-2.0
"""Chat turns as token ids: the one place that knows Gemma's turn markers.

    <bos><start_of_turn>user\\n{system}\\n\\n{user}<end_of_turn>\\n<start_of_turn>model\\n{reply}<end_of_turn>\\n
    mask                                                                      └── 1: reply and its end ──┘

The layout is that of the report (arXiv 2403.08295, Tables 3 and 4) and of the chat templates published with the models:
what a message says is stripped of outer whitespace; the system text is no turn but the beginning of the first one.
Markers are put in as ids. What people write is only ever encoded as text: a marker spelled out inside a message is cut
after its first character before encoding, so it stays the visible characters it is and can open or close no turn.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gemmary.base.errors import InputError
from gemmary.text.tokenizer import Tokenizer

ROLES = ("user", "model", "assistant", "system")


@dataclass(frozen=True)
class Message:
    """One message; the role is user, model (or assistant, which means the same) or system.

    >>> Message("assistant", "Hello!")
    Message(role='assistant', content='Hello!')
    """

    role: str
    content: str


@dataclass(frozen=True)
class Rendered:
    """Ids of a conversation, and for each whether it is a part of a reply that training should learn.

    >>> Rendered((2, 105), (False, False)).ids
    (2, 105)
    """

    ids: tuple[int, ...]
    mask: tuple[bool, ...]


def render(tokenizer: Tokenizer, messages: Sequence[Message]) -> Rendered:
    """The ids of a conversation; after a last message by the user the model's turn is open, ready for its reply.

    Turns of one role that follow each other become one, joined by a blank line. Raises InputError for no messages, an
    unknown role, a system message that is not the first, a conversation the user does not begin, and a vocabulary
    without turn markers.

    >>> from gemmary.formats.sentencepiece import Vocabulary
    >>> pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", *"usermodl", chr(10), "!"]
    >>> tokenizer = Tokenizer(Vocabulary.from_rows(pieces, [0] * 16, [3, 3, 3, 2, 3, 3] + [1] * 10))
    >>> whole = render(tokenizer, [Message("user", "rude"), Message("model", "mm!")])
    >>> print(" ".join(pieces[token_id].strip() or "_" for token_id in whole.ids))
    <bos> <start_of_turn> u s e r _ r u d e <end_of_turn> _ <start_of_turn> m o d e l _ m m ! <end_of_turn> _
    >>> [pieces[token_id] for token_id, learned in zip(whole.ids, whole.mask) if learned]
    ['m', 'm', '!', '<end_of_turn>']
    """
    start, end = _markers(tokenizer)
    newline = tokenizer.encode("\n")
    ids, mask = [tokenizer.bos_id], [False]
    turns = _turns(messages)
    for turn in turns:
        header = [start, *tokenizer.encode(f"{turn.role}\n")]
        spoken = [*_encode_as_text(tokenizer, turn.content), end]
        ids += [*header, *spoken, *newline]
        mask += [False] * len(header) + [turn.role == "model"] * len(spoken) + [False] * len(newline)
    if turns[-1].role == "user":
        opening = [start, *tokenizer.encode("model\n")]
        ids += opening
        mask += [False] * len(opening)
    return Rendered(tuple(ids), tuple(mask))


def prompt_ids(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """The ids to generate a reply from; raises InputError also when the last message is not the user's.

    >>> from gemmary.formats.sentencepiece import Vocabulary
    >>> pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", *"usermodl", chr(10), "!"]
    >>> tokenizer = Tokenizer(Vocabulary.from_rows(pieces, [0] * 16, [3, 3, 3, 2, 3, 3] + [1] * 10))
    >>> tokenizer.decode(prompt_ids(tokenizer, [Message("system", "rules"), Message("user", "sure")])[1:])
    'user\\nrules\\n\\nsure\\nmodel\\n'
    """
    if messages and _role(messages[-1]) != "user":
        raise InputError(
            f"expected the last message to be the user's, got {messages[-1].role!r}: there is nothing to reply to"
        )
    return list(render(tokenizer, messages).ids)


def _markers(tokenizer: Tokenizer) -> tuple[int, int]:
    start, end = tokenizer.start_of_turn_id, tokenizer.end_of_turn_id
    if start is None or end is None:
        raise InputError(
            "expected a vocabulary with <start_of_turn> and <end_of_turn>, got one without: use a Gemma vocabulary"
        )
    return start, end


def _turns(messages: Sequence[Message]) -> list[Message]:
    """User and model in turn, beginning with the user; the system text stands before the user's first words."""
    turns: list[Message] = []
    for message in messages:
        role, content = _role(message), message.content.strip()
        if turns and turns[-1].role == role:
            turns[-1] = replace(turns[-1], content=f"{turns[-1].content}\n\n{content}")
        elif turns and role == "system":
            raise InputError("expected the system message first, got one after other messages: move it to the front")
        else:
            turns.append(Message(role, content))
    system = [turn.content for turn in turns if turn.role == "system"]
    spoken = turns[len(system) :]
    if not spoken or spoken[0].role != "user":
        came = f"{spoken[0].role!r} first" if spoken else "none"
        raise InputError(f"expected a message by the user, got {came}: begin with one of role 'user'")
    return [Message("user", "\n\n".join([*system, spoken[0].content])), *spoken[1:]]


def _role(message: Message) -> str:
    if message.role not in ROLES:
        raise InputError(f"expected a role of {', '.join(ROLES)}, got {message.role!r}: use one of them")
    return "model" if message.role == "assistant" else message.role


def _encode_as_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of what somebody wrote; none of them is a marker, though the vocabulary may find markers in text."""
    special = {tokenizer.pieces[at] for at in (*_markers(tokenizer), *tokenizer.stop_ids, tokenizer.bos_id)}
    after_first = "|".join(f"(?<={re.escape(piece[0])})(?={re.escape(piece[1:])})" for piece in sorted(special))
    return [token_id for part in re.split(after_first, text) for token_id in tokenizer.encode(part)]
