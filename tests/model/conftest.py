# SPDX-License-Identifier: Apache-2.0
"""The reference: transformers' own classes, configured by hand and given the weights of ours without a copy.

features    ours                              transformers
gemma1      defaults                          GemmaForCausalLM
gemma2      windows, two soft caps            Gemma2ForCausalLM
gemma3      5 local : 1 global, QK norm       Gemma3ForCausalLM
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gemmary.base.config import GemmaConfig

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
