# SPDX-License-Identifier: Apache-2.0
"""What is measured: benchmarks as values, in the groups in which they were published.

    report        the 18 of the Gemma report's Table 6              arXiv 2403.08295v4
    leaderboard   the 6 of the Open LLM Leaderboard v1, Table 7     the same
    safety        the 8 of the report's Tables 8 and 10                 the same
    card          4 that the model card of Gemma 3 270M has         ai.google.dev/gemma/docs/core/model_card_3

lm-eval does the tasks. Where the report leaves shots or metric empty, the protocol says what was assumed. The report
cites Llama 2's figures from its own paper, and Mistral's where the protocol does not say otherwise.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gemmary.base.errors import InputError

COMPARED = ("Llama 2 7B", "Llama 2 13B", "Mistral 7B", "Gemma 2B", "Gemma 7B")  # the columns of Table 6
RATED = ("Mistral 7B", "Gemma 7B")  # of Table 7
SAFETY_RATED = ("Mistral 7B v0.2 IT", "Gemma 2B IT", "Gemma 7B IT")  # of Table 8


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One row of a table: tasks of lm-eval, how they are asked and judged, and what others were published with.

    >>> GROUPS["report"]["hellaswag"].published["Gemma 2B"]
    71.4
    """

    title: str
    tasks: tuple[str, ...] = ()  # lm-eval's: names, tags, or patterns such as "bbh_cot_fewshot_*"; none: not run
    shots: int = 0
    metric: str = "acc"
    filter: str = "none"  # of lm-eval, which picks the answer out of a reply
    published: Mapping[str, float] = field(default_factory=dict)  # percent
    protocol: str = ""  # what to know beside the number
    runs_code: bool = False  # whether what the model writes is run, in a sandbox


def _row(columns: Sequence[str], *figures: float) -> dict[str, float]:
    return dict(zip(columns, figures, strict=True))


_AGIEVAL = tuple(
    f"agieval_{name}"
    for name in (
        *("aqua_rat", "gaokao_english", "logiqa_en", "lsat_ar", "lsat_lr", "lsat_rc"),
        *("math", "sat_en_without_passage", "sat_en", "sat_math"),
    )
)
_MATH = tuple(
    f"minerva_math_{name}"
    for name in (
        *("algebra", "counting_and_prob", "geometry", "intermediate_algebra"),
        *("num_theory", "prealgebra", "precalc"),
    )
)
_MMLU = tuple(f"mmlu_{name}_tasks" for name in ("stem", "other", "social_sciences", "humanities"))
_NO_TASK = "lm-eval has no such task"
_NO_CLASSIFIER = "needs a classifier of toxicity, the report's being a service"
_OWN = "Mistral's figure is the Gemma team's own"
_ASSUMED = "the report gives no shots; zero are assumed, as Mistral's report has them"

_REPORT = {
    "mmlu": Benchmark(
        title="MMLU", tasks=_MMLU, shots=5, published=_row(COMPARED, 45.3, 54.8, 62.5, 42.3, 64.3),
        protocol="the letter with the highest probability; questions weigh alike, not subjects",
    ),
    "hellaswag": Benchmark(
        title="HellaSwag", tasks=("hellaswag",), shots=0, metric="acc_norm",
        published=_row(COMPARED, 77.2, 80.7, 81.0, 71.4, 81.2), protocol="endings by log-probability a character",
    ),
    "piqa": Benchmark(
        title="PIQA", tasks=("piqa",), shots=0, metric="acc_norm",
        published=_row(COMPARED, 78.8, 80.5, 82.2, 77.3, 81.2), protocol="solutions by log-probability a character",
    ),
    "siqa": Benchmark(
        title="SIQA", tasks=("social_iqa",), shots=0, published=_row(COMPARED, 48.3, 50.3, 47.0, 49.7, 51.8),
        protocol=_OWN,
    ),
    "boolq": Benchmark(
        title="BoolQ", tasks=("boolq",), shots=0, published=_row(COMPARED, 77.4, 81.7, 83.2, 69.4, 83.2),
        protocol=_OWN,
    ),
    "winogrande": Benchmark(
        title="WinoGrande", tasks=("winogrande",), shots=0, published=_row(COMPARED, 69.2, 72.8, 74.2, 65.4, 72.3),
        protocol="partial scoring: the probability of what follows the blank",
    ),
    "commonsenseqa": Benchmark(
        title="CommonsenseQA", tasks=("commonsense_qa",), shots=7,
        published=_row(COMPARED, 57.8, 67.3, 66.3, 65.3, 71.3),
        protocol=f"the letter with the highest probability; {_OWN}",
    ),
    "openbookqa": Benchmark(
        title="OpenBookQA", tasks=("openbookqa",), shots=0, metric="acc_norm",
        published=_row(COMPARED, 58.6, 57.0, 52.2, 47.8, 52.8), protocol=f"answers a character; {_ASSUMED}",
    ),
    "arc-easy": Benchmark(
        title="ARC-e", tasks=("arc_easy",), shots=0, metric="acc_norm",
        published=_row(COMPARED, 75.2, 77.3, 80.5, 73.2, 81.5), protocol=f"answers a character; {_ASSUMED}",
    ),
    "arc-challenge": Benchmark(
        title="ARC-c", tasks=("arc_challenge",), shots=0, metric="acc_norm",
        published=_row(COMPARED, 45.9, 49.4, 54.9, 42.1, 53.2), protocol=f"answers a character; {_ASSUMED}",
    ),
    "triviaqa": Benchmark(
        title="TriviaQA", tasks=("triviaqa",), shots=5, metric="exact_match", filter="remove_whitespace",
        published=_row(COMPARED, 72.1, 79.6, 62.5, 53.2, 63.4),
        protocol="Llama 2's figures are of the Wikipedia part and not comparable",
    ),
    "nq": Benchmark(
        title="Natural Questions", tasks=("nq_open",), shots=5, metric="exact_match", filter="remove_whitespace",
        published=_row(COMPARED, 25.7, 31.2, 23.2, 12.5, 23.0),
        protocol="the open questions without a passage; Llama 2's figures may be of other shots",
    ),
    "humaneval": Benchmark(
        title="HumanEval", tasks=("gemmary_humaneval",), shots=0, metric="pass@1", runs_code=True,
        published=_row(COMPARED, 12.8, 18.3, 26.2, 22.0, 32.3), protocol="one greedy program each",
    ),
    "mbpp": Benchmark(
        title="MBPP", tasks=("gemmary_mbpp",), shots=3, metric="pass@1", runs_code=True,
        published=_row(COMPARED, 20.8, 30.6, 40.2, 29.2, 44.4),
        protocol=f"one greedy program each, the 500 of the test part; {_OWN}, on its own part it has 50.2",
    ),
    "gsm8k": Benchmark(
        title="GSM8K", tasks=("gsm8k",), shots=5, metric="exact_match", filter="flexible-extract",
        published=_row(COMPARED, 14.6, 28.7, 35.4, 17.7, 46.4),
        protocol=f"one greedy reply, its last number; five shots are assumed; {_OWN}, its own 52.2 is of 8 replies",
    ),
    "math": Benchmark(
        title="MATH", tasks=_MATH, shots=4, metric="exact_match", published=_row(COMPARED, 2.5, 3.9, 12.7, 11.8, 24.3),
        protocol="Minerva's prompt; Mistral's own figure is the best of 4",
    ),
    "agieval": Benchmark(
        title="AGIEval (English)", tasks=_AGIEVAL, shots=0, published=_row(COMPARED, 29.3, 39.1, 41.2, 24.2, 41.7),
        protocol=f"zero shots; the report gives none, later cards say 3 to 5; {_OWN}",
    ),
    "bbh": Benchmark(
        title="BBH", tasks=("bbh_cot_fewshot_*",), shots=3, metric="exact_match", filter="get-answer",
        published=_row(COMPARED, 32.6, 39.4, 56.1, 35.2, 55.1),
        protocol=f"three shots that think step by step, as in later cards; {_OWN}",
    ),
}  # fmt: skip

_LEADERBOARD = {
    "leaderboard-arc": Benchmark(
        title="ARC-c", tasks=("arc_challenge",), shots=25, metric="acc_norm", published=_row(RATED, 60.0, 61.9)
    ),
    "leaderboard-hellaswag": Benchmark(
        title="HellaSwag", tasks=("hellaswag",), shots=10, metric="acc_norm", published=_row(RATED, 83.3, 82.2)
    ),
    "leaderboard-mmlu": Benchmark(
        title="MMLU", tasks=_MMLU, shots=5, published=_row(RATED, 64.2, 64.6),
        protocol="the board took the mean of the subjects; here questions weigh alike",
    ),
    "leaderboard-truthfulqa": Benchmark(
        title="TruthfulQA", tasks=("truthfulqa_mc2",), shots=0, published=_row(RATED, 42.2, 44.8), protocol="MC2"
    ),
    "leaderboard-winogrande": Benchmark(
        title="WinoGrande", tasks=("winogrande",), shots=5, published=_row(RATED, 78.4, 79.0)
    ),
    "leaderboard-gsm8k": Benchmark(
        title="GSM8K", tasks=("gsm8k",), shots=5, metric="exact_match", filter="strict-match",
        published=_row(RATED, 37.8, 50.9),
    ),
}  # fmt: skip

_SAFETY = {
    "crows-pairs": Benchmark(
        title="CrowS-Pairs", tasks=("crows_pairs_english",), shots=0, metric="pct_stereotype",
        published=_row(SAFETY_RATED, 32.76, 45.82, 51.33),
        protocol="how often the stereotyping sentence is the more probable; the report's top-1 is another measure",
    ),
    "bbq-ambiguous": Benchmark(
        title="BBQ ambiguous", tasks=("bbq_ambig",), shots=0,
        published=_row(SAFETY_RATED, 97.53, 62.58, 92.54), protocol="zero shots, the report has one",
    ),
    "bbq-disambiguated": Benchmark(
        title="BBQ disambiguated", tasks=("bbq_disambig",), shots=0,
        published=_row(SAFETY_RATED, 84.45, 54.62, 71.99), protocol="zero shots",
    ),
    "winogender": Benchmark(
        title="Winogender", tasks=("winogender_all",), shots=0, published=_row(SAFETY_RATED, 64.3, 51.25, 54.17)
    ),
    "truthfulqa": Benchmark(
        title="TruthfulQA", tasks=("truthfulqa_mc2",), shots=0, published=_row(SAFETY_RATED, 48.54, 31.81, 44.84),
        protocol="MC2",
    ),
    "winobias-1": Benchmark(
        title="WinoBias 1_2", published=_row(SAFETY_RATED, 65.72, 56.12, 59.09), protocol=f"not run: {_NO_TASK}",
    ),
    "winobias-2": Benchmark(
        title="WinoBias 2_2", published=_row(SAFETY_RATED, 84.53, 91.1, 92.23), protocol=f"not run: {_NO_TASK}",
    ),
    "toxigen": Benchmark(
        title="ToxiGen", tasks=("toxigen",), published=_row(SAFETY_RATED, 61.77, 29.77, 39.59),
        protocol="how often hateful and harmless are told apart; the report's is another measure, lower being better",
    ),
    "realtoxicity": Benchmark(
        title="RealToxicity", published=_row(SAFETY_RATED, 8.44, 6.86, 7.9), protocol=f"not run: {_NO_CLASSIFIER}",
    ),
    "bold": Benchmark(
        title="BOLD", published=_row(SAFETY_RATED, 46.0, 45.57, 49.08), protocol=f"not run: {_NO_CLASSIFIER}",
    ),
}  # fmt: skip

_CARD = {
    "card-hellaswag": Benchmark(
        title="HellaSwag", tasks=("hellaswag",), shots=10, metric="acc_norm", published={"Gemma 3 270M": 40.9}
    ),
    "card-arc-challenge": Benchmark(
        title="ARC-c", tasks=("arc_challenge",), shots=25, metric="acc_norm", published={"Gemma 3 270M": 29.0}
    ),
    "card-arc-easy": Benchmark(
        title="ARC-e", tasks=("arc_easy",), shots=0, metric="acc", published={"Gemma 3 270M": 57.7}
    ),
    "card-triviaqa": Benchmark(
        title="TriviaQA", tasks=("triviaqa",), shots=5, metric="exact_match", filter="remove_whitespace",
        published={"Gemma 3 270M": 15.4},
    ),
}  # fmt: skip

GROUPS: Mapping[str, Mapping[str, Benchmark]] = {
    "report": _REPORT,
    "leaderboard": _LEADERBOARD,
    "safety": _SAFETY,
    "card": _CARD,
}


def chosen(names: Sequence[str]) -> dict[str, Benchmark]:
    """The benchmarks of names and groups, in their order; raises InputError for an unknown name.

    >>> list(chosen(["arc-easy", "card"]))
    ['arc-easy', 'card-hellaswag', 'card-arc-challenge', 'card-arc-easy', 'card-triviaqa']
    >>> chosen(["helaswag"])
    Traceback (most recent call last):
    gemmary.base.errors.InputError: expected benchmarks or groups of them, got 'helaswag': did you mean hellaswag or ...
    """
    every = {name: one for group in GROUPS.values() for name, one in group.items()}
    unknown = next((name for name in names if name not in every and name not in GROUPS), None)
    if unknown is not None or not names:
        near = difflib.get_close_matches(unknown or "", [*GROUPS, *every], n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise InputError(
            f"expected benchmarks or groups of them, got {unknown!r}: {hint}there are {', '.join([*GROUPS, *every])}"
        )
    return {each: one for name in names for each, one in GROUPS.get(name, {name: every.get(name)}).items() if one}
