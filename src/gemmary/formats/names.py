# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint may be written as: the names of formats and precisions, for the command line without NumPy."""

from typing import Literal

Format = Literal["gguf", "safetensors", "keras", "torch"]
Precision = Literal["float32", "float16", "bfloat16", "q8_0", "q4_0"]
