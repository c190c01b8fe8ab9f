# SPDX-License-Identifier: Apache-2.0
"""A sequence being embedded: the sums of its chunks' hidden states add up to the direction of their mean."""

import numpy as np
from numpy.typing import NDArray

from gemmary.base.errors import InputError
from gemmary.generate.row import Row


class Embedding:
    """The row of a sequence, and what its chunks have summed up to so far.

    >>> embedding = Embedding(Row(tokens=[2, 651, 9], max_tokens=0))
    >>> embedding.add(np.array([3.0, 0.0], np.float32))
    >>> embedding.add(np.array([0.0, 4.0], np.float32))
    >>> embedding.vector().tolist() == np.float32([0.6, 0.8]).tolist(), embedding.is_done
    (True, False)
    """

    def __init__(self, row: Row) -> None:
        self.row = row
        self._sum = np.zeros(1)  # of any length

    @property
    def is_done(self) -> bool:
        """Whether all tokens have run."""
        return self.row.num_run == len(self.row.tokens)

    def add(self, chunk: NDArray[np.float32]) -> None:
        """Add the sum (D,) of one chunk."""
        self._sum = self._sum + chunk

    def vector(self) -> NDArray[np.float32]:
        """The mean's direction, a vector of length 1; raises InputError where it has none."""
        length = float(np.linalg.norm(self._sum))
        if not 0 < length < np.inf:
            raise InputError(
                f"expected hidden states with a mean, got one of length {length}: the weights are damaged or the "
                "precision too small (use float32 or bfloat16, not float16)"
            )
        return (self._sum / length).astype(np.float32)
