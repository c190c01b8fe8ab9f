# SPDX-License-Identifier: Apache-2.0
"""The alphabet of dimensions: the same letters in shapes, einsums, the weight table and sharding rules.

B batch · T query length · S key length · N heads · K key-value heads · G = N / K · H head · D model · F mlp (one
gate branch) · V vocabulary · L layers
"""

from collections.abc import Mapping

from gemmary.base.errors import InputError

LETTERS: Mapping[str, str] = {
    "B": "batch",
    "T": "query length",
    "S": "key length",
    "N": "heads",
    "K": "key-value heads",
    "G": "query heads per key-value head",
    "H": "head",
    "D": "model",
    "F": "mlp",
    "V": "vocabulary",
    "L": "layers",
}


def shape_of(dims: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Turn letters into a shape.

    >>> shape_of("N H D", {"N": 8, "H": 256, "D": 2048})
    (8, 256, 2048)

    Raises InputError for a letter without a size.
    """
    missing = [letter for letter in dims.split() if letter not in sizes]
    if missing:
        raise InputError(f"expected sizes for {dims!r}, got none for {missing[0]!r}: known are {sorted(sizes)}")
    return tuple(sizes[letter] for letter in dims.split())
