# SPDX-License-Identifier: Apache-2.0
"""The shapes written in gemmary.model's signatures are enforced while testing (tests/conftest.py), on every backend."""

import pytest
from jaxtyping import TypeCheckError
from keras import ops

from gemmary.model.layers import rms_norm


def test_one_letter_means_one_size_in_a_call() -> None:
    assert rms_norm(ops.ones((2, 8)), ops.zeros(8), eps=1e-6, plus_one=True).shape == (2, 8)
    with pytest.raises(TypeCheckError, match="D"):
        rms_norm(ops.ones((2, 8)), ops.zeros(1), eps=1e-6, plus_one=True)


def test_a_wrong_kind_of_number_is_refused() -> None:
    with pytest.raises(TypeCheckError, match="scale"):
        rms_norm(ops.ones((2, 8)), ops.zeros(8, "int32"), eps=1e-6, plus_one=True)
