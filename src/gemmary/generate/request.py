# SPDX-License-Identifier: Apache-2.0
"""The frozen values that go into and come out of a Generator: Sampling, Grammar, Request, Token, Completion, Score."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gemmary.base.errors import InputError

FinishReason = Literal["stop", "length", "cancelled"]
MOST_ALTERNATIVES = 20


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is picked from logits; the default is greedy.

    >>> Sampling(temperature=0.8, top_p=0.95, seed=7).top_k
    0

    Raises InputError for values out of range.
    """

    temperature: float = 0.0  # 0 is greedy
    top_k: int = 0  # 0 keeps all
    top_p: float = 1.0  # 1 keeps all
    min_p: float = 0.0  # share of the best token's probability; 0 keeps all
    repetition_penalty: float = 1.0  # 1 is none
    seed: int = 0

    @property
    def is_greedy(self) -> bool:
        """Whether the token picked is the one with the largest logit.

        >>> Sampling().is_greedy, Sampling(repetition_penalty=1.1).is_greedy
        (True, False)
        """
        return self.temperature == 0 and self.repetition_penalty == 1

    def __post_init__(self) -> None:
        checks = (
            ("temperature", math.isfinite(self.temperature) and self.temperature >= 0, ">= 0", "use 0 for greedy"),
            ("top_k", self.top_k >= 0, ">= 0", "use 0 to keep all tokens"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]", "use 1 to keep all tokens"),
            ("min_p", 0 <= self.min_p <= 1, "in [0, 1]", "use 0 to keep all tokens"),
            ("repetition_penalty", 0 < self.repetition_penalty < 100, "in (0, 100)", "use 1 for none"),
            ("seed", 0 <= self.seed < 2**64, "in [0, 2**64)", "use 0"),
        )
        for name, good, expected, remedy in checks:
            if not good:
                raise InputError(f"expected {name} {expected}, got {getattr(self, name)}: {remedy}")


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """What a reply may be: all of it, from its first character to its end, follows this text.

    `text` is a JSON schema, a regular expression or a grammar in llguidance's dialect of Lark, as `kind` says. What is
    wrong with it shows when it is used.

    >>> Grammar(kind="regex", text="yes|no").kind
    'regex'
    """

    kind: Literal["json_schema", "regex", "lark"]
    text: str


@dataclass(frozen=True)
class Request:
    """A prompt to continue. Text is encoded by the Generator with BOS once; token ids are taken as they are.

    >>> Request("The capital of France is", max_tokens=8).sampling.temperature
    0.0

    Raises InputError for an empty prompt, an empty stop string, max_tokens below 1, alternatives out of 0..20, or a
    bias that is not finite.
    """

    prompt: str | Sequence[int]
    max_tokens: int = 256
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()  # strings that end the reply and are not part of it
    ignore_stop_ids: bool = False  # go on past end-of-turn and EOS, for benchmarks
    grammar: Grammar | None = None  # what the reply must follow
    bias: Mapping[int, float] = field(default_factory=dict)  # added to the logits of these ids
    alternatives: int | None = None  # report each token's probability, and those of as many most probable ones

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise InputError(f"expected max_tokens >= 1, got {self.max_tokens}: ask for at least one token")
        if len(self.prompt) == 0:
            raise InputError("expected a prompt, got an empty one: write some text, or pass the BOS id alone")
        if any(not text for text in self.stop):
            raise InputError("expected stop strings of at least one character, got an empty one: leave it out")
        if self.alternatives is not None and not 0 <= self.alternatives <= MOST_ALTERNATIVES:
            raise InputError(
                f"expected alternatives in 0..{MOST_ALTERNATIVES}, got {self.alternatives}: ask for fewer, or for None"
            )
        if not all(math.isfinite(value) for value in self.bias.values()):
            raise InputError(f"expected a bias of finite numbers, got {dict(self.bias)}: use -100 to forbid a token")


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a request cost. Seconds are wall-clock; `cached_tokens` of the prompt were already in the cache.

    Of the reply's tokens `accepted_tokens` had been guessed right beforehand, of `drafted_tokens` that were guessed.

    >>> Usage(prompt_tokens=5, completion_tokens=2, cached_tokens=0, prefill_seconds=0.1, decode_seconds=0.2).total
    7
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    prefill_seconds: float
    decode_seconds: float
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def total(self) -> int:
        """Prompt and completion tokens together.

        >>> Usage(prompt_tokens=1, completion_tokens=1, cached_tokens=0, prefill_seconds=0, decode_seconds=0).total
        2
        """
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, kw_only=True)
class Token:
    """One step of a reply: the token and the text that became certain with it (may be empty, never half a character).

    >>> Token(id=108, text="\\n").finish_reason is None
    True
    """

    id: int
    text: str
    finish_reason: FinishReason | None = None  # set on the last token only
    usage: Usage | None = None  # likewise
    # the model's own, before bias, grammar and sampling; only where the request has asked for alternatives
    log_prob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()  # ids and log probabilities, the most probable first


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A whole reply; `ids` holds every generated token, the stop token included, `text` does not show it.

    >>> usage = Usage(prompt_tokens=1, completion_tokens=1, cached_tokens=0, prefill_seconds=0, decode_seconds=0)
    >>> Completion(ids=(1,), text="", finish_reason="stop", usage=usage).finish_reason
    'stop'
    """

    ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    usage: Usage


@dataclass(frozen=True, kw_only=True, eq=False)
class Score:
    """How probable a sequence is, token by token; entry t is about token C + t, C tokens being given.

    >>> Score(log_probs=np.zeros(3), is_greedy=np.ones(3, bool)).log_probs.shape
    (3,)
    """

    log_probs: NDArray[np.floating]  # (T - C,) natural logarithms
    is_greedy: NDArray[np.bool_]  # (T - C,) whether the token is the most probable one
