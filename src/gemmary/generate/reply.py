# SPDX-License-Identifier: Apache-2.0
"""A reply in the making: from logits to the tokens that somebody is waiting for.

logits ─► + bias ─► grammar: others are -inf ─► sample ─► id ─► text, finish reason ─► Token
   └─► log probabilities of the id and its alternatives, where they are asked for ──────┘
"""

import time
from collections import deque
from dataclasses import replace
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from gemmary.base.errors import InputError
from gemmary.generate.constrain import Constraint
from gemmary.generate.request import Completion, FinishReason, Request, Token, Usage
from gemmary.generate.row import Row
from gemmary.generate.sampling import sample
from gemmary.generate.scheduler import Part
from gemmary.text.stream import Detokenizer
from gemmary.text.tokenizer import Tokenizer

Report = tuple[float, tuple[tuple[int, float], ...]]  # a token's log probability; its alternatives' ids and theirs


class Reply:
    """The row of a request, the tokens nobody has taken yet, and the clock.

    >>> from gemmary.generate.scripted import byte_tokenizer
    >>> Reply(Row(tokens=[2, 70], max_tokens=1), Request("a", max_tokens=1), byte_tokenizer(), None).may_screen
    True
    """

    def __init__(self, row: Row, request: Request, tokenizer: Tokenizer, constraint: Constraint | None) -> None:
        self.row = row
        self.tokens: deque[Token] = deque()
        self.is_done = False
        self._request = request
        self._constraint = constraint
        self._bias = (np.array(list(request.bias), np.intp), np.array(list(request.bias.values()), np.float32))
        self._reports: deque[Report] = deque()
        self._detokenizer = Detokenizer(tokenizer, request.stop)
        self._error: InputError | None = None
        self._times: list[float] = []  # when the prompt began, and each token came

    @property
    def may_screen(self) -> bool:
        """Whether the most probable token's logit is all that is needed.

        >>> from gemmary.generate.scripted import byte_tokenizer
        >>> Reply(Row(tokens=[2], max_tokens=1), Request("a", alternatives=0), byte_tokenizer(), None).may_screen
        False
        """
        wants = self._request
        return wants.sampling.is_greedy and self._constraint is None and not wants.bias and wants.alternatives is None

    def pick(self, part: Part, logits: NDArray[np.float32]) -> list[int]:
        """The next tokens from logits (num_logits, V): one, and one more for each draft that is what was picked.

        Logits that are unfit fail this request and not its neighbours; those after a draft are met again, without it.

        >>> from gemmary.generate.generator import Chunk
        >>> from gemmary.generate.scripted import byte_tokenizer
        >>> reply = Reply(Row(tokens=[2, 103], max_tokens=1), Request("a", max_tokens=1), byte_tokenizer(), None)
        >>> part = Part(row=reply.row, chunk=Chunk(slot=0, start=1, ids=(103,)))
        >>> reply.pick(part, np.array([[0.0, 2.0, 1.0]], np.float32))
        [1]
        """
        tokens, picked = self.row.tokens, list[int]()
        for row, draft in zip_longest(logits, part.drafts):
            try:
                history = [*tokens, *picked] if picked else tokens
                token_id = sample(self._allowed(row), self._request.sampling, len(history), history)
            except InputError as error:
                self._error = None if picked else error
                break
            picked.append(token_id)
            if self._request.alternatives is not None:
                self._reports.append(report(row, token_id, self._request.alternatives))
            if self._constraint is not None:
                self._constraint.consume(token_id)
            if token_id != draft:
                break
        return picked

    def advance(self, token_id: int | None, began: float) -> None:
        """Record the row's new token, or that a part of the prompt has run; `began` is when the step did.

        >>> from gemmary.generate.scripted import byte_tokenizer
        >>> reply = Reply(Row(tokens=[2, 103], max_tokens=1), Request("a", max_tokens=1), byte_tokenizer(), None)
        >>> reply.row.tokens.append(104)
        >>> reply.advance(104, began=0.0)
        >>> reply.tokens[0].text
        'b'
        """
        if not self._times:
            self._times.append(began)
        if token_id is not None:
            self._times.append(time.perf_counter())
            self.tokens.append(self._token(token_id))
        self.is_done = self.is_done or self._error is not None

    def next_token(self) -> Token | None:
        """The first token nobody has taken, or None of a reply that was cancelled; raises what made it fail.

        >>> from gemmary.generate.scripted import byte_tokenizer
        >>> reply = Reply(Row(tokens=[2, 103], max_tokens=1), Request("a", max_tokens=1), byte_tokenizer(), None)
        >>> reply.next_token() is None
        True
        """
        if not self.tokens and self._error is not None:
            raise self._error
        if not self.tokens:
            return None
        token = self.tokens.popleft()
        return token if token.finish_reason is None else replace(token, usage=self._usage())

    def completion(self) -> Completion:
        """The whole reply, none of its tokens having been taken; raises what made it fail.

        >>> from gemmary.generate.scripted import byte_tokenizer
        >>> reply = Reply(Row(tokens=[2, 103], max_tokens=1), Request("a", max_tokens=1), byte_tokenizer(), None)
        >>> reply.row.tokens.append(1)
        >>> reply.row.finish_reason = "stop"
        >>> reply.advance(1, began=0.0)
        >>> reply.completion().finish_reason
        'stop'
        """
        if self._error is not None:
            raise self._error
        last = self.tokens[-1]
        assert last.finish_reason is not None
        text = "".join(token.text for token in self.tokens)
        ids = tuple(token.id for token in self.tokens)
        return Completion(ids=ids, text=text, finish_reason=last.finish_reason, usage=self._usage())

    def _allowed(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        ids, values = self._bias
        if len(ids):
            logits = logits.copy()
            logits[ids] += values
        return logits if self._constraint is None else self._constraint.allow(logits)

    def _token(self, token_id: int) -> Token:
        token = spell(self._detokenizer, token_id, self.row.finish_reason)
        if self._reports:
            log_prob, alternatives = self._reports.popleft()
            token = replace(token, log_prob=log_prob, alternatives=alternatives)
        self.is_done = token.finish_reason is not None
        return token

    def _usage(self) -> Usage:
        prompt, times = self.row.num_prompt, self._times
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=len(self.row.tokens) - prompt,
            cached_tokens=self.row.num_cached,
            prefill_seconds=times[1] - times[0],
            decode_seconds=times[-1] - times[1],
            drafted_tokens=self.row.num_drafted,
            accepted_tokens=self.row.num_accepted,
        )


def report(logits: NDArray[np.float32], token_id: int, count: int) -> Report:
    """The log probability of a token, and the `count` most probable ones with theirs, the best first.

    >>> log_prob, alternatives = report(np.log(np.array([0.2, 0.5, 0.3], np.float32)), 0, 2)
    >>> round(log_prob, 3), [(other, round(value, 3)) for other, value in alternatives]
    (-1.609, [(1, -0.693), (2, -1.204)])
    """
    best = logits.max()
    total = float(best) + float(np.log(np.exp(logits - best).sum(dtype=np.float64)))
    count = min(count, len(logits))
    found = np.argpartition(logits, len(logits) - count)[len(logits) - count :] if count else np.zeros(0, np.intp)
    found = found[np.lexsort((found, -logits[found]))]
    return float(logits[token_id]) - total, tuple((int(other), float(logits[other]) - total) for other in found)


def spell(detokenizer: Detokenizer, token_id: int, reason: FinishReason | None) -> Token:
    """The Token of an id; `reason` is "stop" for a stop id, whose text is not shown, "length" at the end of the room.

    A stop string that is complete with this token is a reason too.

    >>> from gemmary.formats.sentencepiece import Vocabulary
    >>> rows = Vocabulary.from_rows(["<pad>", "<eos>", "<bos>", "<unk>", "ab"], [0] * 5, [3, 3, 3, 2, 1])
    >>> token = spell(Detokenizer(Tokenizer(rows), stop=("b",)), 4, None)
    >>> token.text, token.finish_reason
    ('a', 'stop')
    """
    text = "" if reason == "stop" else detokenizer.push(token_id)
    if detokenizer.is_stopped:
        reason = "stop"
    if reason is not None:
        text += detokenizer.flush()
    return Token(id=token_id, text=text, finish_reason=reason)
