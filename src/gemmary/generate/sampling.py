# SPDX-License-Identifier: Apache-2.0
"""From logits to a token: a pure function of the logits, the Sampling value, the position and the tokens before.

    logits ─► repetition penalty ─► temperature ─► top-k ─► top-p ─► min-p ─► one uniform number picks
              (temperature 0 ends here: the best, the lowest id of equals)     Philox, keyed by (seed, position)

The order is that of transformers. Tokens that are equal at a limit stay or go together, so no order of sorting shows.
The random number is a counter's: batching, engine and backend cannot change which one a token gets.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gemmary.base.errors import InputError
from gemmary.generate.request import Sampling


def sample(logits: NDArray[np.float32], sampling: Sampling, position: int, history: Sequence[int]) -> int:
    """The token that stands at `position`, picked from its (V,) logits; `history` is the prompt and the reply so far.

    >>> sample(np.array([0.0, 2.0, 2.0], np.float32), Sampling(), position=5, history=())
    1
    >>> [sample(np.zeros(3, np.float32), Sampling(temperature=1.0), position, ()) for position in range(8)]
    [0, 2, 2, 1, 1, 1, 1, 1]

    Raises InputError for logits without a finite maximum.
    """
    logits = _penalized(logits, sampling.repetition_penalty, history)
    best = int(logits.argmax())
    if not math.isfinite(logits[best]):
        raise InputError(
            f"expected finite logits at position {position}, got {logits[best]}: the weights are damaged or the "
            "precision too small (use float32 or bfloat16, not float16)"
        )
    if sampling.temperature == 0:
        return best
    ids, probabilities = _kept(logits, sampling)
    edges = probabilities.cumsum()
    return int(ids[np.searchsorted(edges, uniform(sampling.seed, position) * edges[-1], side="right")])


def distribution(
    logits: NDArray[np.float32], sampling: Sampling, history: Sequence[int] = ()
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """What a token is drawn from: the kept ids, ascending, and their probabilities, which sum to 1.

    >>> logits = np.log(np.array([0.1, 0.6, 0.3], np.float32))
    >>> ids, probabilities = distribution(logits, Sampling(temperature=1.0, top_p=0.8))
    >>> ids.tolist(), probabilities.round(3).tolist()
    ([1, 2], [0.667, 0.333])
    """
    logits = _penalized(logits, sampling.repetition_penalty, history)
    if sampling.temperature == 0:
        return np.array([logits.argmax()]), np.ones(1)
    ids, weights = _kept(logits, sampling)
    return ids, weights / weights.sum()


def uniform(seed: int, position: int) -> float:
    """The random number in [0, 1) of one position: the first 53 bits of Philox 4x64 under the key (seed, position).

    >>> uniform(7, 100) == uniform(7, 100), uniform(7, 100) == uniform(7, 101)
    (True, False)
    """
    key = np.array([seed, position], np.uint64)
    return float(np.random.Philox(key=key).random_raw() >> 11) * 2.0**-53


def _penalized(logits: NDArray[np.float32], penalty: float, history: Sequence[int]) -> NDArray[np.float32]:
    """Logits of tokens seen before moved towards less probable: divided where positive, multiplied where negative."""
    if penalty == 1 or not history:
        return logits
    seen = np.unique(np.asarray(history))
    seen = seen[seen < len(logits)]
    logits, old = logits.copy(), logits[seen]
    logits[seen] = np.where(old > 0, old / penalty, old * penalty)
    return logits


def _kept(logits: NDArray[np.float32], sampling: Sampling) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The ids that pass top-k, top-p and min-p, and their weights; the best token's weight is 1."""
    kth = len(logits) - sampling.top_k
    least_logit = np.partition(logits, kth)[kth] if 0 < kth < len(logits) else -np.inf
    ids = np.flatnonzero(logits >= least_logit)
    weights = logits[ids].astype(np.float64)  # then in place: each new array of V numbers costs as much as the exp
    weights -= weights.max()
    with np.errstate(over="ignore"):  # at a tiny temperature all but the best become -inf, which is right
        weights /= sampling.temperature
    np.exp(weights, out=weights)
    least = max(sampling.min_p, _nucleus_edge(weights, sampling.top_p))
    if least == 0:
        return ids, weights
    passed = weights >= least
    return ids[passed], weights[passed]


def _nucleus_edge(weights: NDArray[np.float64], top_p: float) -> float:
    """The weight of the last token needed for the best ones to hold `top_p` of all weight."""
    if top_p == 1:
        return 0.0
    descending = np.sort(weights)[::-1]
    mass = descending.cumsum()
    return float(descending[min(np.searchsorted(mass, top_p * mass[-1]), len(mass) - 1)])
