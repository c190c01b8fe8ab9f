# SPDX-License-Identifier: Apache-2.0
"""Checkpoint: a configuration, a vocabulary and lazily read tensors under our paths; open any format, write any."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from gemmary.base.config import GemmaConfig
from gemmary.formats.sentencepiece import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model on disk; `tensors` maps our paths to functions that read one array in our layout when called.

    An array comes in the file's own precision (float32, float16 or ml_dtypes.bfloat16); block formats come as the
    float32 values they mean. Norm scales are the w of (1 + w), whatever the file holds.
    """

    config: GemmaConfig
    tensors: Mapping[str, Callable[[], NDArray[Any]]]
    vocabulary: Vocabulary | None
