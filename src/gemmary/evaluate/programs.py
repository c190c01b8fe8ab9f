# SPDX-License-Identifier: Apache-2.0
"""HumanEval and MBPP as tasks of lm-eval whose programs run in our sandbox; its own run them unguarded in the process.

reply ─► prompt + reply + tests ─► sandbox.run ─► "passed" ─► pass@1
"""

from collections.abc import Mapping
from typing import Any

from gemmary.evaluate.sandbox import run


def humaneval(doc: Mapping[str, Any], replies: list[str]) -> dict[str, float]:
    """Whether the first reply makes a function that its tests pass (arXiv 2107.03374).

    >>> doc = {"prompt": "def one():\\n", "test": "def check(f):\\n    assert f() == 1\\n", "entry_point": "one"}
    >>> humaneval(doc, ["    return 1\\n"]), humaneval(doc, ["    return 2\\n"])
    ({'pass@1': 1.0}, {'pass@1': 0.0})
    """
    program = f"{doc['prompt']}{replies[0]}\n{doc['test']}\ncheck({doc['entry_point']})\n"
    return {"pass@1": float(run(program).status == "passed")}


def mbpp(doc: Mapping[str, Any], replies: list[str]) -> dict[str, float]:
    """Whether the first reply passes all assertions of its task (arXiv 2108.07732).

    >>> mbpp({"test_setup_code": "", "test_list": ["assert one() == 1"]}, ["def one(): return 1"])
    {'pass@1': 1.0}
    """
    program = "\n".join([replies[0], doc.get("test_setup_code") or "", *doc["test_list"]])
    return {"pass@1": float(run(program).status == "passed")}


_PASS = [{"metric": "pass@1", "aggregation": "mean", "higher_is_better": True}]
CODE_TASKS: Mapping[str, Mapping[str, Any]] = {
    "gemmary_humaneval": {
        "dataset_path": "openai/openai_humaneval",
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{canonical_solution}}",
        "generation_kwargs": {
            "until": ["\nclass", "\ndef", "\n#", "\nif", "\nprint"],
            "max_gen_toks": 1024,
            "do_sample": False,
        },
        "process_results": humaneval,
        "metric_list": _PASS,
        "metadata": {"version": 1.0},
    },
    "gemmary_mbpp": {
        "dataset_path": "google-research-datasets/mbpp",
        "dataset_name": "full",
        "test_split": "test",
        "fewshot_split": "prompt",
        "fewshot_config": {"sampler": "first_n", "fewshot_indices": [1, 2, 3]},  # numbers 2 to 4, as in the paper
        "output_type": "generate_until",
        "doc_to_text": (
            "You are an expert Python programmer, and here is your task: {{text}} Your code should pass these tests:"
            "\n\n{{test_list | join('\n')}}\n[BEGIN]\n"
        ),
        "doc_to_target": "{{code}}\n[DONE]",
        "target_delimiter": "",
        "generation_kwargs": {"until": ["[DONE]"], "max_gen_toks": 512, "do_sample": False},
        "process_results": mbpp,
        "metric_list": _PASS,
        "metadata": {"version": 1.0},
    },
}
