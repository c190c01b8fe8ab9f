# SPDX-License-Identifier: Apache-2.0
"""Constraints: which tokens may come next, so that a reply follows a JSON schema, a regular expression or a grammar.

    begin(grammar) ──► Constraint ──► allow(logits): -inf for what may not come ──► a token is picked
                                                  ▲──── consume(token) ◄───────────────────┘

llguidance does the work; it ends what is too large or too ambiguous instead of computing it. Where only one text can
follow, the tokens that our tokenizer would cut it in are the only ones allowed. In JSON one space may stand wherever
white space may, and nothing else: with the usual freedom a small model writes line ends until its room is used up. A
schema that wants it otherwise says so under "x-guidance".
"""

from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gemmary.base.errors import InputError, MissingExtraError
from gemmary.formats.sentencepiece import SPACE, Kind
from gemmary.generate.request import Grammar
from gemmary.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_LONGEST = 1 << 16  # characters; a schema of so many, all properties, takes two seconds to prepare
_NAMES = {"json_schema": "JSON schema", "regex": "regular expression", "lark": "grammar"}
_REASONS = {"NoExtensionBias": "no token of this vocabulary can follow"}


class Constraints:
    """Makes the constraints of replies in one tokenizer's tokens; safe from any thread.

    >>> from gemmary.generate.scripted import byte_tokenizer
    >>> constraints = Constraints(byte_tokenizer())
    >>> constraints.begin(Grammar(kind="regex", text="(yes"))
    Traceback (most recent call last):
    gemmary.base.errors.InputError: expected a regular expression that replies can follow, got one with a fault: ...
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._making = Lock()  # what takes a second is not made twice
        self._last: tuple[Grammar, LLMatcher] | None = None  # a schema is often that of many requests

    def begin(self, grammar: Grammar) -> "Constraint":
        """The constraint of one reply, before its first token.

        Raises InputError with llguidance's reason for a grammar that is malformed, matches nothing, or is too large;
        MissingExtraError without llguidance.

        >>> from gemmary.generate.scripted import byte_tokenizer
        >>> constraint = Constraints(byte_tokenizer()).begin(Grammar(kind="json_schema", text='{"type": "boolean"}'))
        >>> [chr(token_id - 6) for token_id in np.flatnonzero(constraint.allow(np.zeros(263, np.float32)) == 0)]
        ['f', 't']
        """
        if len(grammar.text) > _LONGEST:
            name, size = _NAMES[grammar.kind], len(grammar.text)
            raise InputError(f"expected a {name} of at most {_LONGEST} characters, got {size}: make it smaller")
        known = self._last
        matcher = known[1] if known is not None and known[0] == grammar else self._matcher(grammar)
        constraint = Constraint(matcher.deep_copy(), grammar, unk_id=self._tokenizer.unk_id)
        self._last = (grammar, matcher)  # only what can be begun
        return constraint

    def _matcher(self, grammar: Grammar) -> "LLMatcher":
        with self._making:
            tokenizer = self._llguidance
        from llguidance import LLMatcher, LLParserLimits

        try:
            source = _source(grammar)
        except ValueError as error:
            raise _refused(grammar, str(error)) from None
        return LLMatcher(tokenizer, source, log_level=0, limits=LLParserLimits(verbose_errors=False))

    @cached_property
    def _llguidance(self) -> "LLTokenizer":
        try:
            from llguidance import LLTokenizer, TokenizerWrapper
        except ImportError:
            raise MissingExtraError.of("a constrained reply", "llguidance", "constrain") from None
        return LLTokenizer(TokenizerWrapper(_Pieces(self._tokenizer)), eos_token=sorted(self._tokenizer.stop_ids))


class Constraint:
    """What one reply may go on with: ask `allow`, pick, tell `consume`, and so on; for drafts the same.

    >>> from gemmary.generate.scripted import byte_tokenizer
    >>> constraint, logits = Constraints(byte_tokenizer()).begin(Grammar(kind="regex", text="no?")), np.zeros(263)
    >>> for token_id in byte_tokenizer().encode("no"):
    ...     constraint.consume(token_id)
    >>> np.flatnonzero(constraint.allow(logits) == 0).tolist() == sorted(byte_tokenizer().stop_ids)
    True
    """

    def __init__(self, matcher: "LLMatcher", grammar: Grammar, *, unk_id: int) -> None:
        self._matcher = matcher
        self._grammar = grammar
        self._unk_id = unk_id
        self._mask: NDArray[np.uint8] | None = None
        self._bits()

    def allow(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """A copy of logits (V,) with -inf for every token that may not come next.

        Where the grammar may end the stop ids are allowed too, and where it must they alone. Raises InputError when the
        grammar has become too ambiguous to go on with.

        >>> from gemmary.generate.scripted import byte_tokenizer
        >>> constraint = Constraints(byte_tokenizer()).begin(Grammar(kind="regex", text="ab"))
        >>> int(constraint.allow(np.ones(263, np.float32)).argmax()) - 6 == ord("a")
        True
        """
        allowed = np.unpackbits(self._bits(), count=len(logits), bitorder="little").view(np.bool_)
        return np.where(allowed, logits, np.float32(-np.inf))

    def consume(self, token_id: int) -> None:
        """Go on after a token; raises InputError for one that may not come.

        >>> from gemmary.generate.scripted import byte_tokenizer
        >>> Constraints(byte_tokenizer()).begin(Grammar(kind="regex", text="ab")).consume(6 + ord("b"))
        Traceback (most recent call last):
        gemmary.base.errors.InputError: expected a token that the regular expression allows, got 104: ...
        """
        if not _has(self._bits(), token_id):
            name = _NAMES[self._grammar.kind]
            raise InputError(f"expected a token that the {name} allows, got {token_id}: pick from what `allow` leaves")
        self._matcher.consume_token(token_id)  # where this fails there is no mask after it
        self._mask = None

    def _bits(self) -> NDArray[np.uint8]:
        """A bit for each token that may come next, the lowest first."""
        if self._mask is None:
            mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            if self._matcher.is_error():
                raise _refused(self._grammar, self._matcher.get_error())
            if _has(mask, self._unk_id):  # the one text that can follow is one it cannot write
                raise _refused(self._grammar, "NoExtensionBias")
            self._mask = mask
        return self._mask


class _Pieces:
    """A vocabulary as llguidance asks for it: the bytes that each id adds to the text, the control ids by name."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        vocabulary = tokenizer.vocabulary
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, tokenizer.bos_id
        self.special_token_ids = np.flatnonzero(np.isin(vocabulary.kinds, (Kind.CONTROL, Kind.UNKNOWN))).tolist()
        self.tokens = [piece.replace(SPACE, " ").encode() for piece in vocabulary.pieces]
        self._tokenizer = tokenizer
        self._byte_ids: dict[int, int] = {}
        for token_id in np.flatnonzero(vocabulary.kinds == Kind.BYTE).tolist():
            self.tokens[token_id] = tokenizer.token_bytes(token_id)
            self._byte_ids[self.tokens[token_id][0]] = token_id

    def __call__(self, text: str) -> list[int]:
        """The ids of a text that must come; in bytes where they would give another, as for U+2581, which is a space."""
        ids, data = self._tokenizer.encode(text), text.encode()
        if b"".join(self.tokens[token_id] for token_id in ids) == data:
            return ids
        return [self._byte_ids.get(byte, self._tokenizer.unk_id) for byte in data]


def _has(mask: NDArray[np.uint8], token_id: int) -> bool:
    return bool(mask[token_id // 8] >> token_id % 8 & 1)


def _source(grammar: Grammar) -> str:
    """The grammar in llguidance's own form; ValueError for what is no JSON object."""
    from llguidance import LLMatcher

    if grammar.kind == "json_schema":
        # what the schema says itself goes before; the pattern is matched once at most
        return LLMatcher.grammar_from_json_schema(grammar.text, defaults={"whitespace_pattern": r"\x20"})
    return LLMatcher.grammar_from_regex(grammar.text) if grammar.kind == "regex" else grammar.text


def _refused(grammar: Grammar, message: str) -> InputError:
    name = _NAMES[grammar.kind]
    return InputError(
        f"expected a {name} that replies can follow, got one with a fault: {_reason(message)}: correct or simplify it"
    )


def _reason(message: str) -> str:
    """What llguidance says, on one line: without the picture of the place and the state of its parser."""
    first, *rest = message.splitlines() or [""]
    found = [line.removeprefix("error: ") for line in rest if line.startswith("error: ")]
    reason = " ".join([_REASONS.get(first, first), *found])
    return reason if len(reason) <= 300 else f"{reason[:300]}..."
