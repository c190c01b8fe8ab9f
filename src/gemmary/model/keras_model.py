# SPDX-License-Identifier: Apache-2.0
"""Gemma as a Keras model, for those who live there: variables made by looping over the weight table, `fit`, `save`."""

from typing import Any

import keras
from jaxtyping import Float, Int

from gemmary.base.config import GemmaConfig
from gemmary.formats.tensors import Weight, weights
from gemmary.model.gemma import forward, head

Array = Any


class Gemma(keras.Model):
    """The model as Keras users know it: ids (B, T) int32 to logits (B, T, V) float32.

    >>> config = GemmaConfig(vocab_size=32, num_layers=2, model_dim=8, num_heads=2, num_kv_heads=1, mlp_dim=16)
    >>> from keras import ops
    >>> model = Gemma(config)
    >>> tuple(model(ops.zeros((1, 3), "int32")).shape), model.count_params() == config.num_params
    ((1, 3, 32), True)

    Weights are drawn at random; a checkpoint's are assigned to the variables of `weight_table`.
    """

    def __init__(self, config: GemmaConfig, **keras_options: Any) -> None:
        super().__init__(**keras_options)
        self.config = config
        self.build()

    def build(self, input_shape: object = None) -> None:
        """Make the variables, one for each weight of the table; norm scales are float32 in every policy."""
        self._table = {}
        for path, row, _ in weights(self.config):
            kind = {"dtype": "float32", "autocast": False} if row.is_norm else {}
            name = path.replace(".", "_")  # PyTorch refuses the dots
            self._table[path] = self.add_weight(
                name=name, shape=row.shape(self.config), initializer=_initializer(row), **kind
            )
        self.built = True

    @property
    def weight_table(self) -> dict[str, keras.Variable]:
        """The variables by their paths in the weight table.

        >>> config = GemmaConfig(vocab_size=8, num_layers=1, model_dim=4, num_heads=1, num_kv_heads=1, mlp_dim=4)
        >>> tuple(Gemma(config).weight_table["layers.0.attention.key"].shape)
        (1, 256, 4)
        """
        return dict(self._table)

    def call(
        self,
        ids: Int[Array, "B T"],
        segments: Int[Array, "B T"] | None = None,
        positions: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T V"]:
        """Logits for whole sequences."""
        x = forward(self.config, self._table, ids, segments=segments, positions=positions, dtype=self.compute_dtype)
        return head(self.config, self._table, x)


def _initializer(row: Weight) -> keras.initializers.Initializer:
    """Norm scales at 0 (a factor of 1), all else normal with a deviation of 0.02, as transformers draws them."""
    return keras.initializers.Zeros() if row.is_norm else keras.initializers.RandomNormal(stddev=0.02)
