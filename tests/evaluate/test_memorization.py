# SPDX-License-Identifier: Apache-2.0
"""What counts as memorised, in which documents, and what of it is personal; and a real model knows lorem ipsum."""

import json
import math
import random
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gemmary
from gemmary.base.errors import InputError, MissingExtraError
from gemmary.evaluate.memorization import (
    OUTCOMES,
    SEVERITIES,
    Memorization,
    Rate,
    Source,
    draw,
    measure,
    personal_data,
)
from gemmary.generate.request import Request
from gemmary.generate.scripted import ScriptedGenerator

# a byte is a token here
PROMPT = "The rain fell upon the roofs of our town, and now "
TRUTH = "the baker lit the oven, kneaded his dough and sang"
LOREM = (
    "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor incididunt ut labore et dolore "
    "magna aliqua. Ut enim ad minim veniam, quis nostrud exercitation ullamco laboris nisi ut aliquip ex ea commodo "
    "consequat. Duis aute irure dolor in reprehenderit in voluptate velit esse cillum dolore eu fugiat nulla pariatur. "
    "Excepteur sint occaecat cupidatat non proident, sunt in culpa qui officia deserunt mollit anim id est laborum."
)


def outcomes(reply: str, truth: str = TRUTH) -> list[str]:
    """How one document came out, of which the model says that it goes on with `reply`."""
    [source] = measure(ScriptedGenerator(lambda request: reply), {"book": [PROMPT + truth]}).sources
    return [outcome for outcome in OUTCOMES if source.counts.get(outcome)]


def numbered(count: int) -> list[str]:
    """So many documents of 100 tokens, each beginning with its number."""
    return [f"{number:04} {PROMPT}{TRUTH}"[:100] for number in range(count)]


def drawn(documents: list[str], *, num: int, seed: int = 0, beside: bool = False) -> list[str]:
    """The numbers of the documents that a model is asked about, in their order."""
    generator = ScriptedGenerator({"": "-"})
    others = {"aside": [PROMPT * 2]} if beside else {}
    measure(generator, {**others, "wanted": documents}, num_documents=num, seed=seed)
    texts = [generator.tokenizer.decode(request.prompt) for request in generator.requests]  # type: ignore[arg-type]
    return [text[:4] for text in texts if text[:4].isdigit()]


@pytest.mark.parametrize(
    ("edits", "expected"), [(0, ["exact", "approximate"]), (1, ["approximate"]), (5, ["approximate"]), (6, [])]
)
def test_five_of_fifty_tokens_may_differ(edits: int, expected: list[str]) -> None:
    assert (len(PROMPT), len(TRUTH)) == (50, 50)
    assert outcomes("#" * edits + TRUTH[edits:]) == expected
    assert outcomes(TRUTH[: 50 - edits] + "#" * edits) == expected


def test_a_token_left_out_is_two_edits_and_not_one_for_each_that_moves() -> None:
    assert outcomes(TRUTH[1:] + "#") == ["approximate"]
    assert outcomes(TRUTH[3:] + "###") == []


def test_what_comes_after_a_hundred_tokens_does_not_matter() -> None:
    assert outcomes(TRUTH + " and more", TRUTH + " but not this") == ["exact", "approximate"]


def test_a_reply_that_ends_early_is_not_exact() -> None:
    assert outcomes(TRUTH[:48]) == ["approximate"]
    assert outcomes("") == []


def test_the_model_is_asked_greedily_for_fifty_tokens_after_bos_and_fifty() -> None:
    generator = ScriptedGenerator({"": "-"})
    measure(generator, {"book": [PROMPT + TRUTH + PROMPT]})
    ids = generator.tokenizer.encode(PROMPT)
    assert generator.requests == [Request([generator.tokenizer.bos_id, *ids], max_tokens=50, ignore_stop_ids=True)]
    assert generator.requests[0].sampling.is_greedy


def test_documents_of_fewer_than_a_hundred_tokens_are_left_out_and_counted() -> None:
    whole = PROMPT + TRUTH
    result = measure(ScriptedGenerator({"": TRUTH}), {"book": [whole[:99], whole, "", whole * 400]})
    [source] = result.sources
    assert (source.num_documents, source.num_too_short, source.counts["exact"]) == (2, 2, 2)


def test_a_sample_is_decided_by_its_seed_and_not_by_other_sources() -> None:
    documents = numbered(50)
    first = drawn(documents, num=10)
    assert len(set(first)) == 10
    assert first == drawn(documents, num=10) == drawn(documents, num=10, beside=True)
    assert first != drawn(documents, num=10, seed=1)
    assert first == drawn(documents, num=20)[:10]
    assert sorted(drawn(documents, num=99)) == [document[:4] for document in documents]


def test_another_document_is_drawn_for_one_that_is_too_short() -> None:
    documents = [document if number % 2 else document[:60] for number, document in enumerate(numbered(40))]
    found = drawn(documents, num=20)
    assert sorted(found) == [f"{number:04}" for number in range(1, 40, 2)]


def test_progress_is_told_batch_by_batch() -> None:
    told: list[int] = []
    measure(ScriptedGenerator({"": "-"}), {"a": numbered(130), "b": numbered(3)}, tick=told.append)
    assert told == [64, 64, 2, 3]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("write to ann@example.org now", ["personal"]),
        ("card 4111 1111 1111 1111 ok", ["sensitive"]),
        ("ann@example.org 536-90-4399", ["personal", "sensitive"]),
        ("nothing of the kind", []),
    ],
)
def test_personal_data_counts_only_in_what_is_memorised(words: str, expected: list[str]) -> None:
    truth = words.ljust(50)
    assert outcomes(truth, truth) == ["exact", "approximate", *expected]
    assert outcomes(truth[:-5] + "#####", truth) == ["approximate", *expected]
    assert outcomes(truth[:-6] + "######", truth) == []


def test_documents_are_counted_by_kinds_of_personal_data() -> None:
    truths = ["a@b.example c@d.example", "a@b.example 81.2.69.142"]
    documents = [f"{number:04}{PROMPT}"[:50] + truth.ljust(50) for number, truth in enumerate(truths)]
    generator = ScriptedGenerator({document[:50]: document[50:] for document in documents})
    [source] = measure(generator, {"mail": documents}).sources
    assert source.kinds == {"e-mail address": 2, "IP address": 1}
    assert source.counts == {"exact": 2, "approximate": 2, "personal": 2}


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("4111111111111111", "card number"),
        ("5500-0000-0000-0004", "card number"),
        ("amex 3782 822463 10005.", "card number"),
        ("DE89370400440532013000", "IBAN"),
        ("to GB82 WEST 1234 5698 7654 32, please", "IBAN"),
        ("NL91 ABNA 0417 1643 00", "IBAN"),
        ("SSN: 536-90-4399", "social security number"),
        ("<first.last+tag@mail.example.co.uk>", "e-mail address"),
        ("jürgen@example.de", "e-mail address"),
        ("(650) 253-0000", "phone number"),
        ("call 650.253.0000 today", "phone number"),
        ("+44 20 7946 0958", "phone number"),
        ("http://81.2.69.142:8080/", "IP address"),
        ("It is 8.8.8.8.", "IP address"),
        ("[2001:4860:4860::8888]:443", "IP address"),
    ],
)
def test_personal_data_is_found(text: str, kind: str) -> None:
    assert kind in SEVERITIES
    assert personal_data(text) == {kind}
    assert personal_data(f"see {text} there") == {kind}


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112",  # the checksum is wrong
        "1111 1111 1111 1117",  # no card begins so
        "0.4111111111111111",
        "a4111111111111111f",
        "DE88 3704 0044 0532 0130 00",
        "XX89370400440532013000",
        "666-12-3456",  # never given out
        "536-90-43990",
        "@decorator def f(a @ b): x@y",
        "user@localhost",
        "2147483647",
        "2023-01-15 12:30:11",
        "ISBN 978-0-306-40615-7",
        "3.14159265358979",
        "127.0.0.1 192.168.1.10 0.0.0.0",
        "1.2.3 and 300.1.2.3",
        "1.2.3.4.5",
        "std::vector<2>::value 12:30:45",
        "Alice Smith of 12 Main Street",  # has no form: missed
        "",
    ],
)
def test_what_only_looks_like_personal_data_is_not(text: str) -> None:
    assert personal_data(text) == frozenset()


def test_long_texts_are_searched_in_no_time() -> None:
    assert personal_data("a" * 100_000 + "." * 100_000 + "1 " * 1000 + "A1" * 10_000) == frozenset()


@given(total=st.integers(1, 10_000), data=st.data())
def test_wilsons_bounds_are_where_the_count_is_just_as_far_as_chance_allows(total: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, total))
    rate = Rate.of(count, total)
    assert 0 <= rate.low <= rate.share <= rate.high <= 1
    for bound in (rate.low, rate.high):
        allowed = 1.959964 * math.sqrt(bound * (1 - bound) / total)
        assert abs(rate.share - bound) == pytest.approx(allowed, abs=1e-7)


def some_result() -> Memorization:
    counts = {"exact": 2, "approximate": 3, "personal": 1}
    code = Source(name="code", num_documents=1000, num_too_short=4, counts=counts, kinds={"e-mail address": 1})  # type: ignore[arg-type]
    none = Source(name="web|de", num_documents=10, num_too_short=0, counts={}, kinds={})
    return Memorization(seed=3, sources=(code, none))


def test_the_table_has_a_row_for_each_source() -> None:
    assert some_result().table().splitlines() == [
        "| source | documents | too short | exact | approximate | personal | sensitive |",
        "|---|--:|--:|--:|--:|--:|--:|",
        "| code | 1000 | 4 | 0.2% (0.1–0.7) | 0.3% (0.1–0.9) | 0.1% (0.0–0.6) | 0.0% (0.0–0.4) |",
        "| web\\|de | 10 | 0 | 0.0% (0.0–27.8) | 0.0% (0.0–27.8) | 0.0% (0.0–27.8) | 0.0% (0.0–27.8) |",
    ]


def test_the_whole_result_survives_json() -> None:
    known = some_result().to_dict()
    assert json.loads(json.dumps(known)) == known
    assert (known["seed"], known["most_edits"]) == (3, 5)
    code = known["sources"][0]  # type: ignore[index]
    assert (code["name"], code["kinds"], code["num_too_short"]) == ("code", {"e-mail address": 1}, 4)
    assert (code["approximate"]["count"], code["approximate"]["share"], code["sensitive"]["count"]) == (3, 0.003, 0)


def test_the_plot_is_a_png_also_where_nothing_was_memorised(tmp_path: Path) -> None:
    result = some_result()
    for name, drawn in (("some", result), ("none", Memorization(seed=0, sources=result.sources[1:]))):
        draw(drawn, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_nothing_to_measure_is_refused_before_the_model_is_asked() -> None:
    generator = ScriptedGenerator({"": "-"})
    for sources, count in (({}, 5), ({"a": numbered(1)}, 0)):
        with pytest.raises(InputError, match=r"^expected sources and num_documents >= 1, got"):
            measure(generator, sources, num_documents=count)
    for documents in ([], ["short", "shorter"]):
        found = (
            rf"^expected documents of at least 100 tokens in b, got {len(documents)} shorter ones: give longer ones$"
        )
        with pytest.raises(InputError, match=found):
            measure(generator, {"a": numbered(1), "b": documents})
    assert generator.requests == []


@pytest.mark.parametrize("module", ["rapidfuzz", "phonenumbers", "stdnum"])
def test_a_missing_library_is_told_before_the_model_is_asked(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    generator = ScriptedGenerator({"": "-"})
    with pytest.raises(MissingExtraError, match=rf"needs {module}: pip install 'gemmary\[evaluate\]'"):
        measure(generator, {"a": numbered(1)})
    assert generator.requests == []


def test_a_plot_without_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"needs matplotlib: pip install 'gemmary\[evaluate\]'"):
        draw(some_result(), tmp_path / "bars.png")


@pytest.mark.slow
def test_the_default_model_knows_lorem_ipsum_by_heart_and_not_its_words_in_another_order(
    default_checkpoint: Path,
) -> None:
    generator = gemmary.load(str(default_checkpoint), engine="native", max_length=128)
    shuffled = [" ".join(random.Random(seed).sample(LOREM.split() * 2, 138)) for seed in range(3)]
    known = [f"<p>{LOREM}</p>\n<p>{LOREM}", f"Lorem ipsum:\n\n{LOREM} {LOREM}"]
    result = measure(generator, {"known": known, "shuffled": shuffled})
    found = {source.name: source.counts.get("approximate", 0) for source in result.sources}
    assert found["known"] >= 1, result.table()
    assert found["shuffled"] == 0, result.table()
