# SPDX-License-Identifier: Apache-2.0
"""How sure a measured share or mean is: 95% intervals."""

import math
from collections.abc import Sequence

Z = 1.959964  # 95% of a normal distribution lie within so many standard deviations


def wilson(share: float, total: int) -> tuple[float, float]:
    """Wilson's interval of a share of a total that is not 0: never outside 0 to 1, and never a point.

    >>> [round(end, 3) for end in wilson(0.05, 20)]
    [0.009, 0.236]
    """
    weight = Z**2 / total
    middle = (share + weight / 2) / (1 + weight)
    half = math.sqrt(weight * (share * (1 - share) + weight / 4)) / (1 + weight)
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and its standard error, which is 0 for a single value.

    >>> mean_and_error([1.0, 0.0])
    (0.5, 0.5)
    """
    mean = math.fsum(values) / len(values)
    square = math.fsum((value - mean) ** 2 for value in values)
    return mean, math.sqrt(square / max(1, len(values) - 1) / len(values))
