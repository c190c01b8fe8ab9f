# SPDX-License-Identifier: Apache-2.0
"""What is learned from a batch: a sum of losses and the sum of its weights, in keras.ops alone.

An objective sees the model as `Learner` shows it and knows no backend, no optimizer and no mesh, so one text trains on
all of them. Batches are dictionaries of arrays; what a batch holds is between its maker and the objective.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from keras import ops

from gemmary.base.config import GemmaConfig
from gemmary.model.gemma import forward
from gemmary.model.layers import rms_norm
from gemmary.train.gradient import again
from gemmary.train.loss import token_log_probs

Array = Any
Batch = Mapping[str, Array]
Loss = tuple[Float[Array, ""], Float[Array, ""]]


@dataclass(frozen=True, kw_only=True)
class Learner:
    """The model in training: weights of the table, the activations' precision, whether the embedding is learned.

    >>> config = GemmaConfig(vocab_size=8, num_layers=1, model_dim=4, num_heads=1, num_kv_heads=1, mlp_dim=4)
    >>> Learner(config=config, weights={}, dtype="float32", learns_table=False).remat
    True
    """

    config: GemmaConfig
    weights: Mapping[str, Any]
    dtype: str
    learns_table: bool
    remat: bool = True

    def log_probs(self, batch: Batch) -> Float[Array, "M"]:
        """Log-probabilities of `targets` (M,) after the tokens at `at` (M,), flat indices of `ids` (B, T).

        >>> from gemmary.formats.tensors import weights
        >>> config = GemmaConfig(vocab_size=8, num_layers=1, model_dim=4, num_heads=1, num_kv_heads=1, mlp_dim=4)
        >>> zeros = {path: ops.zeros(row.shape(config)) for path, row, _ in weights(config)}
        >>> learner = Learner(config=config, weights=zeros, dtype="float32", learns_table=False)
        >>> [round(float(each), 4) for each in learner.log_probs(example_batch())]
        [-2.0794, -2.0794]
        """
        config, table = self.config, self.weights["embedding"]
        x = forward(
            config,
            self.weights,
            batch["ids"],
            segments=batch["segments"],
            positions=batch["positions"],
            dtype=self.dtype,
            remat=again if self.remat else None,
        )
        x = ops.take(ops.reshape(x, (-1, config.model_dim)), batch["at"], axis=0)
        x = rms_norm(x, self.weights["final_norm"], eps=config.norm_eps, plus_one=config.norm_plus_one)
        return token_log_probs(x, table, batch["targets"], cap=config.final_softcap, learns_table=self.learns_table)


Objective = Callable[[Learner, Batch], Loss]


def next_token(learner: Learner, batch: Batch) -> Loss:
    """Cross-entropy of the tokens that are learned, in nats: its sum, and how many they are.

    >>> from gemmary.formats.tensors import weights
    >>> config = GemmaConfig(vocab_size=8, num_layers=1, model_dim=4, num_heads=1, num_kv_heads=1, mlp_dim=4)
    >>> zeros = {path: ops.zeros(row.shape(config)) for path, row, _ in weights(config)}
    >>> learner = Learner(config=config, weights=zeros, dtype="float32", learns_table=False)
    >>> loss, count = next_token(learner, example_batch())
    >>> round(float(loss), 4), float(count)
    (4.1589, 2.0)
    """
    return -ops.sum(learner.log_probs(batch) * batch["weights"]), ops.sum(batch["weights"])


def example_batch() -> dict[str, Int[Array, "..."]]:
    """One row of three tokens, of which two are learned: the arrays that `corpus/pack.py` makes.

    >>> sorted(example_batch())
    ['at', 'ids', 'positions', 'segments', 'targets', 'weights']
    """
    rows = {"ids": [[2, 5, 6]], "segments": [[1, 1, 1]], "positions": [[0, 1, 2]], "at": [0, 1], "targets": [5, 6]}
    return {**{name: ops.array(row, "int32") for name, row in rows.items()}, "weights": ops.ones(2)}
