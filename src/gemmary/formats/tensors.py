# SPDX-License-Identifier: Apache-2.0
"""THE TABLE: one row per weight: our path, its letters, and its name and layout in every file format.

Building, loading, saving, sharding, LoRA targets and quantisation all read these rows. A format's layout is written
in the same letters as ours, so the fold that turns our array into the file's, and its inverse, follow from the row:

    ours "N H D"   Hugging Face, GGUF and gemma_pytorch "(N H) D": N and H are one axis   KerasHub "N D H": transposed
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemmary.base.config import GemmaConfig
from gemmary.base.dims import shape_of


@dataclass(frozen=True, kw_only=True)
class Stored:
    """How one file format holds a weight.

    >>> TABLE[2].keras.dims, TABLE[2].keras.at(0), TABLE[2].keras.at(7)
    ('N D H', 'decoder_block/attention/query_dense', 'decoder_block_7/attention/query_dense')
    """

    name: str  # {i} stands for the layer, {_i} for "_" and the layer, or nothing in layer 0
    dims: str  # the file's order of the letters; "(N H)" is one axis of N times H
    ours: str  # our order
    plus_one: bool = False  # the file holds 1 + w where we hold w

    def at(self, layer: int | None) -> str:
        """The name in one layer.

        >>> TABLE[2].gguf.at(3)
        'blk.3.attn_q.weight'
        """
        return self.name.format(i=layer, _i=f"_{layer}" if layer else "")

    def shape(self, config: GemmaConfig) -> tuple[int, ...]:
        """The shape in the file.

        >>> from gemmary.base.config import PRESETS
        >>> TABLE[2].hf.shape(PRESETS["gemma-2b"])
        (2048, 2048)
        """
        groups = self.dims.replace("(", " ( ").replace(")", " ) ").split()
        shape: list[int] = []
        inside: list[int] | None = None
        for word in groups:
            if word == "(":
                inside = []
            elif word == ")" and inside is not None:
                shape.append(prod(inside))
                inside = None
            else:
                (shape if inside is None else inside).append(config.sizes[word])
        return tuple(shape)

    def fold(self, array: NDArray[Any], config: GemmaConfig) -> NDArray[Any]:
        """Our array as the file holds it.

        >>> from gemmary.base.config import PRESETS
        >>> config = PRESETS["gemma-2b"].with_(num_heads=2, head_dim=4, model_dim=8)
        >>> TABLE[2].hf.fold(np.zeros((2, 4, 8)), config).shape
        (8, 8)
        """
        folded = array.transpose([self.ours.split().index(letter) for letter in self._letters])
        return self._shifted(folded.reshape(self.shape(config)), 1, config)

    def unfold(self, array: NDArray[Any], config: GemmaConfig) -> NDArray[Any]:
        """The file's array as ours: the inverse of `fold`, but for what rounding 1 + w has lost.

        >>> from gemmary.base.config import PRESETS
        >>> config = PRESETS["gemma-2b"].with_(num_heads=2, head_dim=4, model_dim=8)
        >>> TABLE[2].keras.unfold(np.zeros((2, 8, 4)), config).shape
        (2, 4, 8)
        """
        apart = array.reshape(shape_of(" ".join(self._letters), config.sizes))
        return self._shifted(apart.transpose([self._letters.index(letter) for letter in self.ours.split()]), -1, config)

    @property
    def _letters(self) -> list[str]:
        return self.dims.replace("(", "").replace(")", "").split()

    def _shifted(self, array: NDArray[Any], by: int, config: GemmaConfig) -> NDArray[Any]:
        if not (self.plus_one and config.norm_plus_one):
            return array
        return array.astype(np.float32) + np.float32(by)


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One row of the table.

    >>> TABLE[0].path, TABLE[0].dims, TABLE[0].gguf.name
    ('embedding', 'V D', 'token_embd.weight')
    """

    path: str  # {i} stands for the layer
    dims: str
    hf: Stored  # names under "model."
    gguf: Stored
    keras: Stored  # names under "layers/"; a decoder block's is preceded by its family: "gemma_" or "gemma3_"
    torch: Stored  # gemma_pytorch; rows that share a name lie one after the other along the first axis
    when: str | None = None  # the feature of GemmaConfig that must be on; "not X": that must be off

    @property
    def is_norm(self) -> bool:
        """Whether this is the scale of an RMSNorm, which stays float32 and is never quantised.

        >>> [row.path for row in TABLE if row.is_norm][-1]
        'final_norm'
        """
        return self.path.endswith("_norm")

    @property
    def lowest(self) -> str:
        """The coarsest block type that it bears; the embedding is the output head too.

        >>> [row.lowest for row in TABLE[:3]]
        ['Q8_0', 'F32', 'Q4_0']
        """
        return "F32" if self.is_norm else "Q8_0" if self.path == "embedding" else "Q4_0"

    @property
    def per_layer(self) -> bool:
        """Whether every layer has one.

        >>> TABLE[0].per_layer
        False
        """
        return "{i}" in self.path

    def exists(self, config: GemmaConfig) -> bool:
        """Whether a model with these features has this weight.

        >>> from gemmary.base.config import PRESETS
        >>> next(row for row in TABLE if row.path.endswith("query_norm")).exists(PRESETS["gemma-2b"])
        False
        """
        if self.when is None:
            return True
        return bool(getattr(config, self.when.removeprefix("not "))) != self.when.startswith("not ")

    def shape(self, config: GemmaConfig) -> tuple[int, ...]:
        """The shape of one layer's weight.

        >>> from gemmary.base.config import PRESETS
        >>> TABLE[2].shape(PRESETS["gemma-2b"])
        (8, 256, 2048)
        """
        return shape_of(self.dims, config.sizes)


_QKV = "self_attn.qkv_proj"


def _row(  # the columns of the table below
    path: str,
    dims: str,
    hf: str,
    gguf: str,
    keras: str,
    *,
    torch: str | None = None,  # where gemma_pytorch's name is not Hugging Face's
    rows_dims: str | None = None,  # the layout of Hugging Face, GGUF and gemma_pytorch, where it is not ours
    keras_dims: str | None = None,  # the layout of KerasHub, where it is not ours
    when: str | None = None,
) -> Weight:
    plain, transposed, is_norm = rows_dims or dims, keras_dims or dims, path.endswith("_norm")
    return Weight(
        path=path,
        dims=dims,
        hf=Stored(name=f"{hf}.weight", dims=plain, ours=dims),
        gguf=Stored(name=f"{gguf}.weight", dims=plain, ours=dims, plus_one=is_norm),
        keras=Stored(name=keras, dims=transposed, ours=dims),
        torch=Stored(name=f"{torch or 'model.' + hf}.weight", dims=plain, ours=dims),
        when=when,
    )


def _layer(path: str, dims: str, hf: str, gguf: str, keras: str, **more: str) -> Weight:
    if "torch" in more:
        more["torch"] = "model.layers.{i}." + more["torch"]
    block = "decoder_block{_i}/"
    return _row("layers.{i}." + path, dims, "layers.{i}." + hf, "blk.{i}." + gguf, block + keras, **more)


_PRE, _POST = "pre_feedforward_layernorm", "post_attention_layernorm"
_HEADS, _KEYS = {"rows_dims": "(N H) D", "keras_dims": "N D H"}, {"rows_dims": "(K H) D", "keras_dims": "K D H"}

# fmt: off
TABLE: tuple[Weight, ...] = (
    _row("embedding", "V D", "embed_tokens", "token_embd", "reversible_embedding", torch="embedder"),
    _layer("attention_norm", "D", "input_layernorm", "attn_norm", "pre_attention_norm"),
    _layer("attention.query", "N H D", "self_attn.q_proj", "attn_q", "attention/query_dense", torch=_QKV, **_HEADS),
    _layer("attention.key", "K H D", "self_attn.k_proj", "attn_k", "attention/key_dense", torch=_QKV, **_KEYS),
    _layer("attention.value", "K H D", "self_attn.v_proj", "attn_v", "attention/value_dense", torch=_QKV, **_KEYS),
    _layer("attention.output", "D N H", "self_attn.o_proj", "attn_output", "attention/output_dense",
           rows_dims="D (N H)", keras_dims="N H D"),
    _layer("attention.query_norm", "H", "self_attn.q_norm", "attn_q_norm", "attention/query_norm",
           torch="self_attn.query_norm", when="qk_norm"),
    _layer("attention.key_norm", "H", "self_attn.k_norm", "attn_k_norm", "attention/key_norm",
           torch="self_attn.key_norm", when="qk_norm"),
    _layer("attention_post_norm", "D", _POST, "post_attention_norm", "post_attention_norm", when="post_norm"),
    _layer("mlp_norm", "D", _POST, "ffn_norm", "pre_ffw_norm", when="not post_norm"),
    _layer("mlp_norm", "D", _PRE, "ffn_norm", "pre_ffw_norm", when="post_norm"),
    _layer("mlp.gate", "F D", "mlp.gate_proj", "ffn_gate", "gating_ffw", keras_dims="D F"),
    _layer("mlp.up", "F D", "mlp.up_proj", "ffn_up", "gating_ffw_2", keras_dims="D F"),
    _layer("mlp.down", "D F", "mlp.down_proj", "ffn_down", "ffw_linear", keras_dims="F D"),
    _layer("mlp_post_norm", "D", "post_feedforward_layernorm", "post_ffw_norm", "post_ffw_norm", when="post_norm"),
    _row("final_norm", "D", "norm", "output_norm", "rms_normalization"),
)
# fmt: on


def rows(config: GemmaConfig) -> tuple[Weight, ...]:
    """The rows of the weights that a model with these features has.

    >>> from gemmary.base.config import PRESETS
    >>> len(rows(PRESETS["gemma-2b"])), len(rows(PRESETS["gemma-3-270m"]))
    (11, 15)
    """
    return tuple(row for row in TABLE if row.exists(config))


def weights(config: GemmaConfig) -> Iterator[tuple[str, Weight, int | None]]:
    """Every weight of the model in file order: its path, its row and its layer (None outside the layers).

    >>> from gemmary.base.config import PRESETS
    >>> [path for path, row, layer in weights(PRESETS["gemma-2b"])][:2]
    ['embedding', 'layers.0.attention_norm']
    """
    table = rows(config)
    yield table[0].path, table[0], None
    for layer in range(config.num_layers):
        for row in table[1:-1]:
            yield row.path.format(i=layer), row, layer
    yield table[-1].path, table[-1], None
