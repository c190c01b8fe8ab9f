# SPDX-License-Identifier: Apache-2.0
"""THE TABLE: one row per weight: our path, its letters, and its name in every file format.

Building, loading, saving, sharding, LoRA targets and quantisation all read these rows. Our layouts keep the
contracted letters last, as the Hugging Face and GGUF files do, so those formats differ from ours by a reshape only.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from gemmary.base.config import PRESETS, GemmaConfig
from gemmary.base.dims import shape_of


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One row of the table; `{i}` stands for the layer.

    >>> TABLE[0].path, TABLE[0].dims, TABLE[0].gguf
    ('embedding', 'V D', 'token_embd.weight')
    """

    path: str
    dims: str
    hf: str  # under "model."
    gguf: str
    when: str | None = None  # the feature of GemmaConfig that must be on; "not X": that must be off

    @property
    def is_norm(self) -> bool:
        """Whether this is the scale of an RMSNorm, which stays float32 and is never quantised.

        >>> [row.path for row in TABLE if row.is_norm][-1]
        'final_norm'
        """
        return self.path.endswith("_norm")

    @property
    def per_layer(self) -> bool:
        """Whether every layer has one.

        >>> TABLE[0].per_layer
        False
        """
        return "{i}" in self.path

    def exists(self, config: GemmaConfig) -> bool:
        """Whether a model with these features has this weight.

        >>> next(row for row in TABLE if row.path.endswith("query_norm")).exists(PRESETS["gemma-2b"])
        False
        """
        if self.when is None:
            return True
        return bool(getattr(config, self.when.removeprefix("not "))) != self.when.startswith("not ")

    def shape(self, config: GemmaConfig) -> tuple[int, ...]:
        """The shape of one layer's weight.

        >>> TABLE[2].shape(PRESETS["gemma-2b"])
        (8, 256, 2048)
        """
        return shape_of(self.dims, config.sizes)


_LAYER, _HF, _BLOCK = "layers.{i}.", "layers.{i}.", "blk.{i}."


def _row(path: str, dims: str, hf: str, gguf: str, when: str | None = None) -> Weight:
    return Weight(path=_LAYER + path, dims=dims, hf=f"{_HF}{hf}.weight", gguf=f"{_BLOCK}{gguf}.weight", when=when)


TABLE: tuple[Weight, ...] = (
    Weight(path="embedding", dims="V D", hf="embed_tokens.weight", gguf="token_embd.weight"),
    _row("attention_norm", "D", "input_layernorm", "attn_norm"),
    _row("attention.query", "N H D", "self_attn.q_proj", "attn_q"),
    _row("attention.key", "K H D", "self_attn.k_proj", "attn_k"),
    _row("attention.value", "K H D", "self_attn.v_proj", "attn_v"),
    _row("attention.output", "D N H", "self_attn.o_proj", "attn_output"),
    _row("attention.query_norm", "H", "self_attn.q_norm", "attn_q_norm", "qk_norm"),
    _row("attention.key_norm", "H", "self_attn.k_norm", "attn_k_norm", "qk_norm"),
    _row("attention_post_norm", "D", "post_attention_layernorm", "post_attention_norm", "post_norm"),
    _row("mlp_norm", "D", "post_attention_layernorm", "ffn_norm", "not post_norm"),
    _row("mlp_norm", "D", "pre_feedforward_layernorm", "ffn_norm", "post_norm"),
    _row("mlp.gate", "F D", "mlp.gate_proj", "ffn_gate"),
    _row("mlp.up", "F D", "mlp.up_proj", "ffn_up"),
    _row("mlp.down", "D F", "mlp.down_proj", "ffn_down"),
    _row("mlp_post_norm", "D", "post_feedforward_layernorm", "post_ffw_norm", "post_norm"),
    Weight(path="final_norm", dims="D", hf="norm.weight", gguf="output_norm.weight"),
)


def rows(config: GemmaConfig) -> tuple[Weight, ...]:
    """The rows of the weights that a model with these features has.

    >>> len(rows(PRESETS["gemma-2b"])), len(rows(PRESETS["gemma-3-270m"]))
    (11, 15)
    """
    return tuple(row for row in TABLE if row.exists(config))


def weights(config: GemmaConfig) -> Iterator[tuple[str, Weight, int | None]]:
    """Every weight of the model in file order: its path, its row and its layer (None outside the layers).

    >>> [path for path, row, layer in weights(PRESETS["gemma-2b"])][:2]
    ['embedding', 'layers.0.attention_norm']
    """
    table = rows(config)
    yield table[0].path, table[0], None
    for layer in range(config.num_layers):
        for row in table[1:-1]:
            yield row.path.format(i=layer), row, layer
    yield table[-1].path, table[-1], None
