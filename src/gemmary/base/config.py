# SPDX-License-Identifier: Apache-2.0
"""GemmaConfig: every size and feature of a Gemma, written once; PRESETS: one row per member of the family.

Features, never versions: a generation is a row of values. Sources: the Gemma report (arXiv 2403.08295) tables 1 and
2, the Gemma 2 and 3 reports, and the published `config.json` files.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Self, TypedDict, Unpack

from gemmary.base.errors import InputError


@dataclass(frozen=True, kw_only=True)
class GemmaConfig:
    """The sizes and features of one model; the defaults are those of Gemma 1.

    >>> PRESETS["gemma-2b"].num_params
    2506172416
    >>> PRESETS["gemma-3-270m"].windows[4:7]
    (512, None, 512)

    Raises InputError for sizes that do not fit together.
    """

    vocab_size: int = 256_000  # V, rows of the embedding
    num_layers: int  # L
    model_dim: int  # D
    num_heads: int  # N
    num_kv_heads: int  # K: 1 is multi-query, N is multi-head
    head_dim: int = 256  # H
    mlp_dim: int  # F: the width of ONE gate branch, as in the Hugging Face files
    max_length: int = 8192  # tokens of context
    norm_eps: float = 1e-6
    query_scale: float = 256**-0.5  # multiplies the queries; not always head_dim ** -0.5
    rope_base: float = 10_000.0  # layers that attend to everything
    rope_base_local: float = 10_000.0  # layers with a window
    rope_scale: float = 1.0  # positions are divided by it, in layers that attend to everything
    window_pattern: tuple[int | None, ...] = (None,)  # tiled over the layers; None attends to everything
    attn_softcap: float | None = None
    final_softcap: float | None = None
    post_norm: bool = False  # a norm on the output of attention and of the mlp
    qk_norm: bool = False  # a norm on every query and key head
    norm_plus_one: bool = True  # norms multiply by (1 + w)

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not isinstance(value, bool) and not 0 < value < 2**40:
                raise InputError(f"expected {field.name} > 0, got {value}: see gemmary.PRESETS for real values")
        if self.num_heads % self.num_kv_heads:
            raise InputError(f"expected num_kv_heads that divides num_heads={self.num_heads}, got {self.num_kv_heads}")
        if self.head_dim % 2:
            raise InputError(f"expected an even head_dim (RoPE turns pairs), got {self.head_dim}")
        if not self.window_pattern or any(window is not None and window < 1 for window in self.window_pattern):
            raise InputError(f"expected window_pattern of None or sizes >= 1, got {self.window_pattern}")

    @property
    def sizes(self) -> Mapping[str, int]:
        """The size of each letter of the alphabet that the model fixes.

        >>> PRESETS["gemma-7b"].sizes["G"]
        1
        """
        return {
            "V": self.vocab_size,
            "L": self.num_layers,
            "D": self.model_dim,
            "N": self.num_heads,
            "K": self.num_kv_heads,
            "G": self.num_heads // self.num_kv_heads,
            "H": self.head_dim,
            "F": self.mlp_dim,
        }

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The window of each layer: how many positions a token sees, itself included; None is all of them.

        >>> PRESETS["gemma-2-2b"].windows[:2]
        (4096, None)
        """
        return tuple(self.window_pattern[i % len(self.window_pattern)] for i in range(self.num_layers))

    @property
    def embedding_params(self) -> int:
        """Parameters of the embedding, which is also the output head.

        >>> replace(PRESETS["gemma-2b"], vocab_size=256_128).embedding_params  # the report's table 2
        524550144
        """
        return self.vocab_size * self.model_dim

    @property
    def non_embedding_params(self) -> int:
        """All other parameters.

        >>> PRESETS["gemma-7b"].non_embedding_params  # the report's table 2
        7751248896
        """
        attention = 2 * self.model_dim * self.head_dim * (self.num_heads + self.num_kv_heads)
        norms = (4 if self.post_norm else 2) * self.model_dim + (2 * self.head_dim if self.qk_norm else 0)
        return self.num_layers * (attention + 3 * self.model_dim * self.mlp_dim + norms) + self.model_dim

    @property
    def num_params(self) -> int:
        """All parameters, the tied embedding counted once.

        >>> PRESETS["gemma-3-270m"].num_params
        268098176
        """
        return self.embedding_params + self.non_embedding_params

    def cache_lengths(self, length: int, chunk: int) -> tuple[int, ...]:
        """Positions each layer's key-value cache holds for `length` tokens fed at most `chunk` at a time.

        A layer with a window keeps a ring: what may still be looked at, and one chunk, so that a sequence can be taken
        back by up to a chunk and continued otherwise.

        >>> PRESETS["gemma-3-270m"].cache_lengths(4096, 256)[4:6]
        (768, 4096)
        """
        return tuple(min(length, window + chunk if window else length) for window in self.windows)

    def cache_bytes(self, length: int, *, chunk: int = 256, itemsize: int = 4, slots: int = 1) -> int:
        """Bytes of the key-value cache for `slots` sequences of `length` tokens, `itemsize` bytes a number.

        >>> PRESETS["gemma-2b"].cache_bytes(8192, itemsize=2)
        150994944
        """
        each = 2 * self.num_kv_heads * self.head_dim * itemsize
        return slots * each * sum(self.cache_lengths(length, chunk))

    def with_(self, **changes: object) -> Self:
        """A copy with some fields changed.

        >>> PRESETS["gemma-2b"].with_(vocab_size=256_128).vocab_size
        256128

        Raises InputError for a field that does not exist.
        """
        unknown = sorted(set(changes) - {field.name for field in fields(self)})
        if unknown:
            raise InputError(f"expected fields of GemmaConfig, got {unknown[0]!r}")
        return replace(self, **changes)  # type: ignore[arg-type]  # names checked above, values in __post_init__


class _Sizes(TypedDict):
    num_layers: int
    model_dim: int
    num_heads: int
    num_kv_heads: int
    mlp_dim: int


def _gemma1(**sizes: Unpack[_Sizes]) -> GemmaConfig:
    return GemmaConfig(**sizes)


def _gemma2(*, query_dim: int = 256, head_dim: int = 256, **sizes: Unpack[_Sizes]) -> GemmaConfig:
    return GemmaConfig(
        head_dim=head_dim,
        query_scale=query_dim**-0.5,
        window_pattern=(4096, None),
        attn_softcap=50.0,
        final_softcap=30.0,
        post_norm=True,
        **sizes,
    )


def _gemma3(
    *,
    window: int = 1024,
    query_dim: int = 256,
    head_dim: int = 256,
    rope_scale: float = 8.0,
    max_length: int = 131_072,
    **sizes: Unpack[_Sizes],
) -> GemmaConfig:
    return GemmaConfig(
        vocab_size=262_144,
        max_length=max_length,
        head_dim=head_dim,
        query_scale=query_dim**-0.5,
        rope_base=1_000_000.0,
        rope_scale=rope_scale,
        window_pattern=(*(window,) * 5, None),
        post_norm=True,
        qk_norm=True,
        **sizes,
    )


def _small_gemma3(**sizes: Unpack[_Sizes]) -> GemmaConfig:
    return _gemma3(window=512, rope_scale=1.0, max_length=32_768, **sizes)


_GEMMA_2B = _gemma1(num_layers=18, model_dim=2048, num_heads=8, num_kv_heads=1, mlp_dim=16_384)
_GEMMA_7B = _gemma1(num_layers=28, model_dim=3072, num_heads=16, num_kv_heads=16, mlp_dim=24_576)
_GEMMA2_2B = _gemma2(num_layers=26, model_dim=2304, num_heads=8, num_kv_heads=4, mlp_dim=9216)
_GEMMA2_9B = _gemma2(num_layers=42, model_dim=3584, num_heads=16, num_kv_heads=8, mlp_dim=14_336)
_GEMMA2_27B = _gemma2(  # query scale 144 = D / N, not the head's 128
    num_layers=46, model_dim=4608, num_heads=32, num_kv_heads=16, mlp_dim=36_864, head_dim=128, query_dim=144
)
_GEMMA3_270M = _small_gemma3(num_layers=18, model_dim=640, num_heads=4, num_kv_heads=1, mlp_dim=2048)
_GEMMA3_1B = _small_gemma3(num_layers=26, model_dim=1152, num_heads=4, num_kv_heads=1, mlp_dim=6912)
_GEMMA3_4B = _gemma3(num_layers=34, model_dim=2560, num_heads=8, num_kv_heads=4, mlp_dim=10_240)
_GEMMA3_12B = _gemma3(num_layers=48, model_dim=3840, num_heads=16, num_kv_heads=8, mlp_dim=15_360)
_GEMMA3_27B = _gemma3(  # query scale 168 = D / N, not the head's 128
    num_layers=62, model_dim=5376, num_heads=32, num_kv_heads=16, mlp_dim=21_504, head_dim=128, query_dim=168
)

_NAMES = (
    (_GEMMA_2B, ("gemma-2b", "gemma-2b-it", "gemma-1.1-2b-it", "codegemma-2b")),
    (_GEMMA_7B, ("gemma-7b", "gemma-7b-it", "gemma-1.1-7b-it", "codegemma-7b", "codegemma-7b-it")),
    (_GEMMA2_2B, ("gemma-2-2b", "gemma-2-2b-it", "shieldgemma-2b")),
    (_GEMMA2_9B, ("gemma-2-9b", "gemma-2-9b-it", "shieldgemma-9b")),
    (_GEMMA2_27B, ("gemma-2-27b", "gemma-2-27b-it", "shieldgemma-27b")),
    (_GEMMA3_270M, ("gemma-3-270m", "gemma-3-270m-it")),
    (_GEMMA3_1B, ("gemma-3-1b-pt", "gemma-3-1b-it")),
    (_GEMMA3_4B, ("gemma-3-4b-pt", "gemma-3-4b-it")),
    (_GEMMA3_12B, ("gemma-3-12b-pt", "gemma-3-12b-it")),
    (_GEMMA3_27B, ("gemma-3-27b-pt", "gemma-3-27b-it")),
)
PRESETS: Mapping[str, GemmaConfig] = {name: config for config, names in _NAMES for name in names}
