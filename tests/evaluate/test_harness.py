# SPDX-License-Identifier: Apache-2.0
"""lm-eval over our Generator: the same answers as its own model of Hugging Face, each asked once."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.evaluator import evaluate

from gemmary.api import load
from gemmary.base.errors import FileError, InputError
from gemmary.evaluate import harness
from gemmary.evaluate.harness import GeneratorLM, run
from gemmary.evaluate.replies import Replies
from gemmary.evaluate.tasks import GROUPS, Benchmark
from gemmary.generate.request import Request
from gemmary.generate.scripted import ScriptedGenerator

PAIRS = [("Once upon a time", " there was"), ("12 and 30 is ", " 42"), ("", "Hello"), ("Q: x?\nA:", " yes, no")]


def scored(*pairs: tuple[str, str]) -> list[Instance]:
    return [Instance("loglikelihood", {}, pair, 0) for pair in pairs]


def asked(context: str, **how: Any) -> list[Instance]:
    return [Instance("generate_until", {}, (context, how), 0)]


@pytest.fixture
def replies() -> Replies:
    return Replies(Path(":memory:"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two small benchmarks in the files of their authors."""
    questions = [{"question": f"{n} + 1?", "answer": f"Count on. #### {n + 1}"} for n in range(8)]
    endings = [
        {"activity_label": "Walking", "ctx_a": f"{n} people walk.", "ctx_b": "they", "label": str(n % 4)}
        | {"endings": ["go home.", "sit.", "run off.", "sing."], "ctx": "", "source_id": "a", "ind": n}
        for n in range(6)
    ]
    for name, rows in {"gsm8k/train": questions, "gsm8k/test": questions, "hellaswag/validation": endings}.items():
        path = tmp_path / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    return tmp_path


def test_lm_evals_own_model_of_hugging_face_says_the_same(golden: Path, replies: Replies) -> None:
    from lm_eval.models.huggingface import HFLM

    theirs = HFLM(pretrained=str(golden / "model"), device="cpu", dtype="float32", batch_size=1, add_bos_token=True)
    ours = GeneratorLM(load(str(golden / "model"), engine="keras", max_length=256), replies)
    for one, other in zip(ours.loglikelihood(scored(*PAIRS)), theirs.loglikelihood(scored(*PAIRS)), strict=True):
        assert one[0] == pytest.approx(other[0], rel=1e-5) and one[1] == other[1]
    how = {"until": ["\n"], "max_gen_toks": 12, "do_sample": False}
    for context, _ in PAIRS[:2]:
        assert ours.generate_until(asked(context, **how)) == theirs.generate_until(asked(context, **how))


def test_bos_stands_first_once_and_a_space_goes_to_the_continuation(replies: Replies) -> None:
    generator = ScriptedGenerator({})
    model, bos = GeneratorLM(generator, replies), generator.tokenizer.bos_id
    for context, continuation in PAIRS:
        ids, num_given = model._pair(context, continuation)
        assert ids.count(bos) == 1 and ids[0] == bos
        assert generator.tokenizer.decode(ids[1:]) == context + continuation
        assert generator.tokenizer.decode(ids[num_given:]) == context[len(context.rstrip()) :] + continuation


def test_a_continuation_scores_as_its_tokens_do(replies: Replies) -> None:
    [(log_prob, is_greedy)] = GeneratorLM(ScriptedGenerator({}), replies).loglikelihood(scored(("ab", " cde")))
    assert log_prob == pytest.approx(-4 * math.log(263)) and not is_greedy


def test_replies_end_before_what_ends_them_and_stay_within_their_length(replies: Replies) -> None:
    generator = ScriptedGenerator({"?": "one. two"})
    model = GeneratorLM(generator, replies)
    assert model.generate_until(asked("?", until=[".", "\n"])) == ["one"]
    assert model.generate_until(asked("?", until="t", max_gen_toks=99)) == ["one. "]
    assert model.generate_until(asked("?", max_gen_toks=2)) == ["on"]
    assert [each.max_tokens for each in generator.requests] == [256, 99, 2]


def test_what_does_not_fit_is_counted_and_wrong_and_nothing_is_cut(golden: Path, replies: Replies) -> None:
    model = GeneratorLM(load(str(golden / "model"), engine="native", max_length=16), replies)
    long = "one two three " * 20
    found = model.loglikelihood(scored((long, " four"), ("one", " two")))
    assert found[0] == (-1e9, False) and found[1][0] > -100
    assert model.generate_until(asked(long)) == [""]
    assert model.generate_until(asked("one two", max_gen_toks=99)) == [""]  # a reply that the context cut
    assert model.too_long


def test_an_item_that_does_not_fit_is_wrong_in_every_run(golden: Path, data: Path, replies: Replies) -> None:
    benchmark = GROUPS["card"]["card-hellaswag"]
    shots = Benchmark(title="long", tasks=benchmark.tasks, shots=3, metric="acc_norm")
    for _ in range(2):
        model = GeneratorLM(load(str(golden / "model"), engine="native", max_length=48), replies)
        measured = run(shots, model, data=data)
        assert measured.num_too_long == len(measured.values) == 6 and measured.mean == 0 and not measured.other


@pytest.mark.parametrize("name", ["hellaswag", "gsm8k"])
def test_no_item_is_a_shot_of_its_own(name: str, data: Path) -> None:
    if name == "gsm8k":
        (data / "gsm8k" / "train.jsonl").write_text('{"question": "0 + 0?", "answer": "#### 0"}\n' * 5, "utf-8")
    benchmark = Benchmark(title="own", tasks=(name,), shots=3)
    for task in harness.tasks_of(benchmark, data=data).values():
        task.build_all_requests()
        for each in task.instances:
            text = each.args[0]
            item = f"{each.doc['ind']} people" if name == "hellaswag" else each.doc["question"]
            assert text.count(item) == 1


def test_a_second_run_asks_the_model_nothing(data: Path, tmp_path: Path) -> None:
    class Mute(ScriptedGenerator):
        def score(self, *_: object) -> list[Any]:
            raise AssertionError("asked again")

    benchmark = GROUPS["report"]["hellaswag"]
    first = GeneratorLM(ScriptedGenerator({}), Replies(tmp_path / "replies.db"))
    before = run(benchmark, first, data=data)
    second = GeneratorLM(Mute({}), Replies(tmp_path / "replies.db"))
    assert run(benchmark, second, data=data).values == before.values
    assert (first.num_asked, first.num_kept) == (24, 0) and (second.num_asked, second.num_kept) == (0, 24)


def test_a_run_that_is_stopped_goes_on_from_what_was_answered(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopping(ScriptedGenerator):
        def complete(self, requests: Any) -> list[Any]:
            if len(self.requests) >= 4:
                raise KeyboardInterrupt
            return super().complete(requests)

    monkeypatch.setattr(harness, "_PORTION", 2)
    benchmark, say = GROUPS["report"]["gsm8k"], {"5?": "#### 5", "?": "#### 3"}
    stopped = Stopping(say)
    with pytest.raises(KeyboardInterrupt):
        run(benchmark, GeneratorLM(stopped, Replies(tmp_path / "replies.db")), data=data)
    rest = ScriptedGenerator(say)
    resumed = run(benchmark, GeneratorLM(rest, Replies(tmp_path / "replies.db")), data=data)
    whole = run(benchmark, GeneratorLM(ScriptedGenerator(say), Replies(Path(":memory:"))), data=data)
    assert resumed.values == whole.values and (len(stopped.requests), len(rest.requests)) == (4, 4)


def right(request: Request) -> str:
    """The sum that is asked for last."""
    text = ScriptedGenerator({}).tokenizer.decode(request.prompt)
    return f"#### {int(text.rpartition('Question: ')[2].partition(' ')[0]) + 1}"


def test_means_and_errors_are_lm_evals(data: Path, replies: Replies) -> None:
    """The same requests and metrics through lm-eval's own evaluate, which makes the means itself."""
    model = GeneratorLM(ScriptedGenerator({"?": "#### 1", "2 + 1?": "#### 3", "4 + 1?": "so 5"}), replies)
    ours = run(GROUPS["leaderboard"]["leaderboard-gsm8k"], model, data=data)
    spec = harness._spec("gsm8k", GROUPS["leaderboard"]["leaderboard-gsm8k"], data)
    tasks = harness.task_manager().load({"group": "own", "task": [spec]})["tasks"]
    for task in tasks.values():
        task.set_fewshot_seed(seed=1234)
    theirs: Mapping[str, Any] = evaluate(lm=model, task_dict={"tasks": tasks, "groups": {}})["results"]["gsm8k"]
    assert ours.mean == theirs["exact_match,strict-match"]
    assert ours.stderr == pytest.approx(theirs["exact_match_stderr,strict-match"])
    assert ours.other["exact_match,flexible-extract"] == theirs["exact_match,flexible-extract"] > ours.mean
    assert (
        run(GROUPS["report"]["gsm8k"], GeneratorLM(ScriptedGenerator(right), Replies(Path(":memory:"))), data=data).mean
        == 1
    )


def test_a_limit_is_spread_over_the_parts(data: Path, replies: Replies) -> None:
    rows = [
        {"problem": f"{n}?", "solution": "\\boxed{1}", "level": "1", "type": part}
        for part in ("Algebra", "Geometry")
        for n in range(5)
    ]
    (data / "math").mkdir()
    (data / "math" / "test.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    parts = ("minerva_math_algebra", "minerva_math_geometry")
    benchmark = Benchmark(title="two parts", tasks=parts, shots=4, metric="exact_match")
    says = ScriptedGenerator({"?": "Final Answer: The final answer is $1$. I hope it is correct."})
    measured = run(benchmark, GeneratorLM(says, replies), limit=4, data=data)
    assert sorted(name.rpartition("/")[0] for name in measured.values) == [
        f"{part}/{place}" for part in parts for place in (0, 2)
    ], "and over each part: it may be sorted"
    assert measured.mean == 1


def test_every_benchmark_names_tasks_that_lm_eval_has() -> None:
    manager = harness.task_manager()
    for group in GROUPS.values():
        for benchmark in group.values():
            for name in benchmark.tasks:
                assert harness._leaves(manager, name), name
    leaves = {
        name: sum(len(harness._leaves(manager, each)) for each in one.tasks) for name, one in GROUPS["report"].items()
    }
    assert len(leaves) == 18 and (leaves["mmlu"], leaves["bbh"], leaves["agieval"], leaves["math"]) == (57, 27, 10, 7)


def test_data_that_is_not_there_is_named_and_never_replaced(data: Path, replies: Replies) -> None:
    with pytest.raises(FileError, match=r"expected the data of arc_easy in .*arc_easy, got no such folder"):
        run(GROUPS["report"]["arc-easy"], GeneratorLM(ScriptedGenerator({}), replies), data=data)
    with pytest.raises(InputError, match="expected a benchmark that can be run, got BOLD: not run"):
        run(GROUPS["safety"]["bold"], GeneratorLM(ScriptedGenerator({}), replies), data=data)


def test_replies_that_are_damaged_are_said_so(tmp_path: Path) -> None:
    (tmp_path / "replies.db").write_bytes(b"no database" * 100)
    with pytest.raises(FileError, match=r"expected a file of replies at .*replies\.db"):
        Replies(tmp_path / "replies.db")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["arc-easy", "triviaqa"])
def test_the_real_model_is_measured(name: str, shared_data: Path, default_checkpoint: Path, replies: Replies) -> None:
    """The 270M knows more than chance of what is easy: a quarter of it, and no answers in words."""
    model = GeneratorLM(load(str(default_checkpoint), engine="native", max_length=2048, num_slots=4), replies)
    measured = run(GROUPS["card"][f"card-{name}"], model, limit=16, data=shared_data / "benchmarks")
    assert len(measured.values) == 16 and measured.num_too_long == 0
    assert measured.mean > (0.25 if name == "arc-easy" else 0)
