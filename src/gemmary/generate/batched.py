# SPDX-License-Identifier: Apache-2.0
"""BatchedGenerator: a Generator over any Engine; all requests of all threads run together, in one batch.

    thread 1  stream ──► waits: runs a step ──► its token
    thread 2  stream ──► waits for the step ──────► its token, from the same step
    thread 3  score  ──► waits for the step, runs the next one ──► ...

There is no thread of our own: whoever waits runs a step for everybody, or waits for the one that is being run.
"""

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, takewhile
from operator import eq

import numpy as np
from numpy.typing import NDArray

from gemmary.base.config import GemmaConfig
from gemmary.base.errors import InputError
from gemmary.generate.constrain import Constraints
from gemmary.generate.draft import Drafter
from gemmary.generate.embedded import Embedding
from gemmary.generate.generator import Engine, Stream
from gemmary.generate.reply import Reply
from gemmary.generate.request import Completion, Request, Score, Token
from gemmary.generate.row import Row
from gemmary.generate.scheduler import Part, Scheduler
from gemmary.text.tokenizer import Tokenizer


class BatchedGenerator:
    """The Generator of an engine and a tokenizer; a reply does not depend on what else is in the batch.

    Safe from any thread. Ctrl-C is held back while a step runs and raised after it, so the generator stays usable.

    >>> from gemmary.formats.sentencepiece import Vocabulary
    >>> class Alternating:  # the least an engine can be: after "a" comes "b", after anything else "a"
    ...     config = GemmaConfig(vocab_size=6, num_layers=1, model_dim=8, num_heads=1, num_kv_heads=1, mlp_dim=8)
    ...     num_slots, max_length, chunk_length = 2, 32, 8
    ...     def logits(self, chunks):
    ...         return np.stack([np.eye(6, dtype=np.float32)[5 if chunk.ids[-1] == 4 else 4] for chunk in chunks])
    ...     candidates = logits
    ...     def keep(self, slot, length):
    ...         return length
    >>> rows = Vocabulary.from_rows(["<pad>", "<eos>", "<bos>", "<unk>", "a", "b"], [0] * 6, [3, 3, 3, 2, 1, 1])
    >>> generator = BatchedGenerator(Alternating(), Tokenizer(rows))
    >>> [one.text for one in generator.complete([Request("a", max_tokens=3), Request("b", max_tokens=4)])]
    ['bab', 'abab']
    >>> generator.engine.num_slots
    2
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, drafter: Drafter | None = None) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        # a row of padding that seems most probable would screen out what is most probable without it
        self._may_screen = engine.config.vocab_size == tokenizer.vocab_size
        self._drafter = drafter
        self._constraints = Constraints(tokenizer)
        self._scheduler = Scheduler(
            num_slots=engine.num_slots,
            max_length=engine.max_length,
            chunk_length=engine.chunk_length,
            keep=engine.keep,
            num_drafts=engine.num_drafts if drafter else 0,
        )
        self._jobs: dict[Row, _Job] = {}
        self._changed = threading.Condition()  # guards the scheduler and the jobs; told after every step
        self._is_stepping = False

    @property
    def config(self) -> GemmaConfig:
        """The model's sizes and features."""
        return self._engine.config

    @property
    def engine(self) -> Engine:
        """What computes."""
        return self._engine

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._tokenizer

    @property
    def max_length(self) -> int:
        """The most tokens of a prompt and its reply together."""
        return self._engine.max_length

    def stream(self, request: Request) -> Stream:
        """One reply, token by token; the request is checked at once and begins with the first token asked for."""
        reply = self._reply(request)
        return _Stream(self._stream(reply), lambda: self._cancel(reply))

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """Whole replies, in the order of the requests, computed together."""
        replies = [self._reply(request) for request in requests]
        with self._submitted(replies):
            self._run_until(lambda: all(reply.is_done for reply in replies))
        return [reply.completion() for reply in replies]

    def score(self, sequences: Sequence[Sequence[int]], contexts: Sequence[int] | None = None) -> list[Score]:
        """How probable each sequence's tokens are; `contexts[i]` first tokens of sequence i are given, 1 unless told.

        A slot judges sequences with a common context one after the other, and keeps what they have in common. Others
        run beside each other, those of like length together, the longest first.
        """
        given = [1] * len(sequences) if contexts is None else contexts
        if len(given) != len(sequences):
            raise InputError(f"expected a context for each of {len(sequences)} sequences, got {len(given)}")
        jobs = [self._judgement(ids, count) for ids, count in zip(sequences, given, strict=True)]
        todo = [job for job in jobs if not job.is_done]
        found = [deque(todo[at] for at in chain) for chain in chains([job.given for job in todo])]
        waiting = deque(sorted(found, key=lambda chain: -len(chain[0].row.tokens)))
        lanes: list[deque[_Judgement]] = []
        with self._submitted([]) as submit:
            while waiting or lanes:
                for lane in [lane for lane in lanes if lane[0].is_done]:
                    lane.popleft()
                    submit(lane[0]) if lane else lanes.remove(lane)
                while waiting and len(lanes) < self._engine.num_slots:
                    lanes.append(waiting.popleft())
                    submit(lanes[-1][0])
                self._run_until(lambda: not lanes or any(lane[0].is_done for lane in lanes))
        return [job.score() for job in jobs]

    def embed(self, sequences: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """The (N, D) means of the sequences' hidden states after the last norm, each of length 1."""
        jobs = [self._embedding(ids) for ids in sequences]
        with self._submitted(jobs):
            self._run_until(lambda: all(job.is_done for job in jobs))
        return np.array([job.vector() for job in jobs], np.float32).reshape(len(jobs), self.config.model_dim)

    def _reply(self, request: Request) -> "Reply":
        text = request.prompt
        ids = self._tokenizer.prompt(text) if isinstance(text, str) else self._checked(text)
        self._scheduler.check_length(len(ids))
        # there are no logits for rows of padding
        self._checked(list(request.bias), min(self.config.vocab_size, self._tokenizer.vocab_size))
        stop_ids = frozenset() if request.ignore_stop_ids else self._tokenizer.stop_ids
        row = Row(tokens=ids, max_tokens=request.max_tokens, stop_ids=stop_ids)
        constraint = None if request.grammar is None else self._constraints.begin(request.grammar)
        return Reply(row, request, self._tokenizer, constraint)

    def _judgement(self, sequence: Sequence[int], num_given: int) -> "_Judgement":
        ids = self._nonempty(sequence)
        if not 1 <= num_given <= len(ids):
            raise InputError(f"expected a context of 1 to {len(ids)} tokens, all of the sequence's, got {num_given}")
        self._scheduler.check_length(len(ids) - 1, max_tokens=0)
        return _Judgement(Row(tokens=ids[:-1], max_tokens=0, num_given=num_given - 1), ids[1:])

    def _embedding(self, sequence: Sequence[int]) -> Embedding:
        ids = self._nonempty(sequence)
        self._scheduler.check_length(len(ids), max_tokens=0)
        return Embedding(Row(tokens=ids, max_tokens=0))

    def _nonempty(self, sequence: Sequence[int]) -> list[int]:
        if not len(sequence):
            raise InputError("expected sequences of at least one token, got an empty one: start with the BOS id")
        return self._checked(sequence)

    def _checked(self, ids: Sequence[int], size: int | None = None) -> list[int]:
        size = size or self.config.vocab_size
        for token_id in ids:
            if not isinstance(token_id, int | np.integer) or not 0 <= token_id < size:
                raise InputError(
                    f"expected token ids in 0..{size - 1}, got {token_id!r}: use the ids of this model's tokenizer"
                )
        return [int(token_id) for token_id in ids]

    def _stream(self, reply: "Reply") -> Iterator[Token]:
        if reply.is_done:
            return  # closed before it began
        with self._submitted([reply]):
            while True:
                self._run_until(lambda: bool(reply.tokens) or reply.is_done)
                if (token := reply.next_token()) is None:
                    return
                yield token
                if token.finish_reason is not None:
                    return

    def _cancel(self, reply: Reply) -> None:
        with self._changed:
            reply.is_done = True
            reply.tokens.clear()
            if self._jobs.pop(reply.row, None) is not None:
                self._scheduler.finish(reply.row, "cancelled")
            self._changed.notify_all()

    @contextmanager
    def _submitted(self, jobs: Sequence["_Job"]) -> Iterator[Callable[["_Job"], None]]:
        """Put jobs in the queue, and more as they are given; however the block ends, none of them keeps a slot."""
        submitted: list[_Job] = []

        def submit(job: "_Job") -> None:
            with self._changed:
                submitted.append(job)
                self._jobs[job.row] = job
                self._scheduler.submit(job.row)

        try:
            for job in jobs:
                submit(job)
            yield submit
        finally:
            with self._changed:
                for job in submitted:
                    if self._jobs.pop(job.row, None) is not None:
                        self._scheduler.finish(job.row, "cancelled")

    def _run_until(self, is_ready: Callable[[], bool]) -> None:
        """Run steps, or wait for those that others run."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: is_ready() or not self._is_stepping)
                if is_ready():
                    return
            with _interrupts_held_back():
                self._try_step()

    def _try_step(self) -> None:
        with self._changed:
            if self._is_stepping:
                return
            self._is_stepping = True
        try:
            self._step()
        finally:
            with self._changed:
                self._is_stepping = False
                self._changed.notify_all()

    def _step(self) -> None:
        with self._changed:
            rows = self._scheduler.drafting()
        drafts = self._drafter.propose(rows) if self._drafter and rows else {}
        with self._changed:
            work = [(part, self._jobs[part.row]) for part in self._scheduler.plan(drafts)]
        replies = [(part, job) for part, job in work if isinstance(job, Reply)]
        judged = [(part, job) for part, job in work if isinstance(job, _Judgement)]
        embedded = [(part, job) for part, job in work if isinstance(job, Embedding)]
        if replies:
            self._step_replies(replies)
        if judged:
            self._step_judged(judged)
        if embedded:
            self._step_embedded(embedded)

    def _step_replies(self, work: list[tuple[Part, "Reply"]]) -> None:
        began = time.perf_counter()
        screens = self._may_screen and all(job.may_screen for _, job in work)
        run = self._engine.candidates if screens else self._engine.logits
        logits = run([part.chunk for part, _ in work])
        # rows of the embedding past the vocabulary are padding and stand for nothing
        logits = logits[:, : self._tokenizer.vocab_size]
        ends = accumulate(part.chunk.num_logits for part, _ in work)
        each = np.split(logits, list(ends)[:-1])
        picked = [job.pick(part, rows) for (part, job), rows in zip(work, each, strict=True)]
        with self._changed:
            for (part, job), tokens in zip(work, picked, strict=True):
                before = len(part.row.tokens)
                steps: Sequence[int | None] = tokens or [None]  # a prompt that goes on gives none
                for token in steps:
                    self._advance(part, job, token, began)
                self._scheduler.judge(part, sum(map(eq, part.drafts, part.row.tokens[before:])))

    def _advance(self, part: Part, job: "Reply", token: int | None, began: float) -> None:
        if part.row.finish_reason is not None:
            return  # cancelled meanwhile, or ended by a token before
        self._scheduler.advance(part, token)
        job.advance(token, began)
        if job.is_done:
            self._scheduler.finish(part.row, "stop")

    def _step_judged(self, work: list[tuple[Part, "_Judgement"]]) -> None:
        given = [part for part, _ in work if part.chunk.start < part.row.num_given]
        judged = [(part, job) for part, job in work if part.chunk.start >= part.row.num_given]
        if given:
            self._engine.logits([part.chunk for part in given])
        targets = [job.targets[part.chunk.start : part.chunk.end] for part, job in judged]
        scores = self._engine.score([part.chunk for part, _ in judged], targets) if judged else []
        with self._changed:
            for (_, job), score in zip(judged, scores, strict=True):
                job.parts.append(score)
            for part, _ in work:
                self._scheduler.advance(part, None)

    def _step_embedded(self, work: list[tuple[Part, Embedding]]) -> None:
        sums = self._engine.embed([part.chunk for part, _ in work])
        with self._changed:
            for (part, job), each in zip(work, sums, strict=True):
                job.add(each)
                self._scheduler.advance(part, None)


class _Stream:
    """A reply's tokens as they come; closing it, from any thread, frees its place even while another waits for one."""

    def __init__(self, tokens: Iterator[Token], cancel: Callable[[], None]) -> None:
        self._tokens = tokens
        self._cancel = cancel

    def __iter__(self) -> Iterator[Token]:
        return self

    def __next__(self) -> Token:
        return next(self._tokens)

    def close(self) -> None:
        self._cancel()


class _Judgement:
    """A sequence being scored: its row, the token that follows each of the row's, and what the engine said so far."""

    def __init__(self, row: Row, targets: list[int]) -> None:
        self.row = row
        self.targets = targets
        self.parts: list[Score] = []

    @property
    def given(self) -> list[int]:
        return self.row.tokens[: self.row.num_given]

    @property
    def is_done(self) -> bool:
        return max(self.row.num_run, self.row.num_given) == len(self.targets)

    def score(self) -> Score:
        log_probs = [np.asarray(part.log_probs, np.float64) for part in self.parts]
        is_greedy = [part.is_greedy for part in self.parts]
        return Score(
            log_probs=np.concatenate([np.zeros(0), *log_probs]),
            is_greedy=np.concatenate([np.zeros(0, np.bool_), *is_greedy]),
        )


_Job = Reply | _Judgement | Embedding


def chains(contexts: Sequence[Sequence[int]]) -> list[list[int]]:
    """The places of contexts that have most in common, each such group in the order in which it keeps most of it.

    >>> chains([[2, 5, 6], [2, 9], [2, 5, 7], []])
    [[3], [0, 2], [1]]
    """
    found: list[list[int]] = []
    before: Sequence[int] = ()
    for at, context in sorted(enumerate(contexts), key=lambda item: list(item[1])):
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, context, strict=False)))
        if found and 2 * common > len(context):
            found[-1].append(at)
        else:
            found.append([at])
        before = context
    return found


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Raise Ctrl-C after the block and not inside it; only the main thread ever gets one."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    held: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if held:
            before(signal.SIGINT, None)
