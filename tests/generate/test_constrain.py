# SPDX-License-Identifier: Apache-2.0
"""Replies that are drawn at random follow their grammar, as jsonschema and re judge; hostile grammars end soon."""

import json
import re
import string
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from gemmary.api import load_tokenizer
from gemmary.base.errors import InputError, MissingExtraError
from gemmary.formats.sentencepiece import Kind, Vocabulary
from gemmary.generate.constrain import Constraint, Constraints
from gemmary.generate.request import Grammar
from gemmary.text.tokenizer import Tokenizer

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a b", "é", "▁"]}, "maxItems": 3},
        "more": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    """Bytes, a few words, a piece of two spaces."""
    normal = ["ab", "b▁", '"', '":', '{"', "true", "▁▁", "▁name", "é", "12"]
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *normal, *string.ascii_lowercase]
    kinds = [3, 3, 3, 2, 3, 3] + [6] * 256 + [1] * (len(normal) + 26)
    scores = -np.arange(len(pieces), dtype=np.float32)
    return Tokenizer(Vocabulary.from_rows(pieces, scores, kinds))


@pytest.fixture(scope="module")
def small(words: Tokenizer) -> Constraints:
    return Constraints(words)


@pytest.fixture(scope="module")
def gemma(default_checkpoint: Path) -> tuple[Tokenizer, Constraints]:
    """The 262,144 pieces of Gemma 3."""
    tokenizer = load_tokenizer(str(default_checkpoint))
    return tokenizer, Constraints(tokenizer)


def allowed(constraint: Constraint, size: int) -> list[int]:
    logits = np.arange(size, dtype=np.float32)
    found = constraint.allow(logits)
    kept = np.flatnonzero(found != -np.inf)
    assert (found[kept] == logits[kept]).all() and found is not logits and logits[-1] == size - 1
    return kept.tolist()


def reply(constraints: Constraints, tokenizer: Tokenizer, grammar: Grammar, seed: int, most: int = 300) -> str | None:
    """A reply of tokens drawn evenly; None if it has not ended after `most`."""
    draw, constraint, ids = np.random.default_rng(seed), constraints.begin(grammar), []
    for _ in range(most):
        ids.append(int(draw.choice(allowed(constraint, tokenizer.vocab_size))))
        constraint.consume(ids[-1])
        if ids[-1] in tokenizer.stop_ids:
            return tokenizer.decode(ids)
    return None


def test_random_replies_are_valid_by_the_schema(small: Constraints, words: Tokenizer) -> None:
    grammar = Grammar(kind="json_schema", text=json.dumps(PERSON))
    texts = [reply(small, words, grammar, seed) for seed in range(40)]
    found = [json.loads(text) for text in texts if text is not None]
    for value in found:
        jsonschema.validate(value, PERSON)
    assert len(found) == 40 and len({"more" in value for value in found}) == 2
    assert any("▁" in value["tags"] for value in found), "the piece that spells a space has a character of its own"


def test_random_replies_match_the_expression(small: Constraints, words: Tokenizer) -> None:
    for pattern in ("(yes|no)!{0,3}", "[a-z]{2,5}( [a-z]{1,3})?", "▁▁a ▁(x|é)", r"\d{3}-\d{4}", "  ab  ab", "(ab)*"):
        for seed in range(8):
            text = reply(small, words, Grammar(kind="regex", text=pattern), seed)
            assert text is not None and re.fullmatch(pattern, text), (pattern, text)


def test_random_replies_are_of_the_grammar(small: Constraints, words: Tokenizer) -> None:
    arithmetic = 'start: sum\nsum: product ("+" product)*\nproduct: atom ("*" atom)*\natom: /[1-9]/ | "(" sum ")"'
    texts = [reply(small, words, Grammar(kind="lark", text=arithmetic), seed) for seed in range(30)]
    ended = [text for text in texts if text is not None]
    assert len(ended) > 10 and any("(" in text for text in ended)
    assert all(eval(text) > 0 for text in ended)


def test_white_space_of_json_is_one_space_unless_the_schema_says_otherwise(
    small: Constraints, words: Tokenizer
) -> None:
    size, blanks = words.vocab_size, {6 + ord(" "), 6 + ord("\n"), 6 + ord("\t")}
    schema = {"type": "object", "properties": {"ab": {"type": "integer"}}, "required": ["ab"]}
    usual = small.begin(Grammar(kind="json_schema", text=json.dumps(schema)))
    usual.consume(6 + ord("{"))
    assert blanks & set(allowed(usual, size)) == {6 + ord(" ")}
    usual.consume(6 + ord(" "))
    assert not blanks & set(allowed(usual, size))
    compact = schema | {"x-guidance": {"whitespace_pattern": None, "whitespace_flexible": False}}
    constraint, ids = small.begin(Grammar(kind="json_schema", text=json.dumps(compact))), []
    while len(found := allowed(constraint, size)) == 1:
        ids += found
        constraint.consume(ids[-1])
    assert words.decode(ids) == '{"ab":' and not blanks & set(found)


def test_an_object_of_any_kind_is_an_object(small: Constraints, words: Tokenizer) -> None:
    grammar = Grammar(kind="json_schema", text='{"type": "object"}')
    texts = [reply(small, words, grammar, seed) for seed in range(30)]
    values = [json.loads(text) for text in texts if text is not None]
    assert len(values) > 5 and all(isinstance(value, dict) for value in values)


def test_what_is_complete_ends_and_what_may_end_need_not(small: Constraints, words: Tokenizer) -> None:
    size, stops = words.vocab_size, sorted(words.stop_ids)
    constraint = small.begin(Grammar(kind="regex", text="ab?"))
    assert not set(stops) & set(allowed(constraint, size))
    constraint.consume(6 + ord("a"))
    assert set(allowed(constraint, size)) > set(stops)
    constraint.consume(6 + ord("b"))
    assert allowed(constraint, size) == stops
    constraint.consume(stops[1])
    assert allowed(constraint, size) == stops, "a request may go on past the end"


def test_rows_past_the_vocabulary_are_forbidden(small: Constraints, words: Tokenizer) -> None:
    size = words.vocab_size
    constraint = small.begin(Grammar(kind="regex", text="(.|\n)*"))
    assert max(allowed(constraint, size + 100)) < size


def test_control_pieces_are_no_text(small: Constraints, words: Tokenizer) -> None:
    constraint = small.begin(Grammar(kind="regex", text="(.|\n)+"))
    assert not set(range(6)) & set(allowed(constraint, words.vocab_size))


@pytest.mark.parametrize("pattern", ["[a-z ]{1,7}", "[^a-y]+", "(\n|\r)+", "[ぁ-ん]{1,3}", "[0-9A-F<>]+"])
def test_of_gemmas_vocabulary_exactly_the_pieces_that_fit_are_allowed(
    gemma: tuple[Tokenizer, Constraints], pattern: str
) -> None:
    tokenizer, constraints = gemma
    found = allowed(constraints.begin(Grammar(kind="regex", text=pattern)), tokenizer.vocab_size)
    kinds, pieces = tokenizer.vocabulary.kinds.tolist(), tokenizer.pieces
    texts = {at: piece.replace("▁", " ") for at, piece in enumerate(pieces) if kinds[at] in (Kind.NORMAL, 4, 5)}
    texts |= {at: chr(int(pieces[at][3:5], 16)) for at in range(len(pieces)) if kinds[at] == Kind.BYTE}
    fits = re.compile(pattern).fullmatch
    wanted = {at for at, text in texts.items() if fits(text) and (kinds[at] != Kind.BYTE or text.isascii())}
    begins = {at for at in found if kinds[at] == Kind.BYTE and not texts[at].isascii()}  # of a longer character
    assert wanted and set(found) - begins == wanted
    assert {texts[at] for at in begins} == {"[^a-y]+": set(map(chr, range(0xC2, 0xF5))), "[ぁ-ん]{1,3}": {"ã"}}.get(
        pattern, set()
    )


def test_a_character_without_a_piece_comes_in_bytes(gemma: tuple[Tokenizer, Constraints]) -> None:
    tokenizer, constraints = gemma
    for text in ("▁", "a▁b ▁", "\U0001fae8\u0378", "\u2047"):
        constraint, ids = constraints.begin(Grammar(kind="regex", text=text)), []
        while not set(found := allowed(constraint, tokenizer.vocab_size)) & tokenizer.stop_ids:
            ids.append(found[-1])
            constraint.consume(ids[-1])
        assert tokenizer.decode(ids) == text


def test_where_one_text_can_follow_it_is_cut_as_the_tokenizer_cuts_it(gemma: tuple[Tokenizer, Constraints]) -> None:
    tokenizer, constraints = gemma
    text = "The capital of France is"
    constraint, ids = constraints.begin(Grammar(kind="regex", text=text)), []
    while not set(found := allowed(constraint, tokenizer.vocab_size)) & tokenizer.stop_ids:
        [token_id] = found
        ids.append(token_id)
        constraint.consume(token_id)
    assert ids == tokenizer.encode(text)


def test_a_vocabulary_that_cannot_write_the_text_is_an_error() -> None:
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "a", "▁"]
    constraints = Constraints(Tokenizer(Vocabulary.from_rows(pieces, [0.0] * 6, [3, 3, 3, 2, 1, 1])))
    for text in ("é", "▁", "b", "aé"):
        with pytest.raises(InputError, match="no token of this vocabulary can follow"):
            constraints.begin(Grammar(kind="regex", text=text))
    constraint = constraints.begin(Grammar(kind="regex", text="a(a|é)"))
    constraint.consume(4)
    assert allowed(constraint, 6) == [4]
    constraint = constraints.begin(Grammar(kind="regex", text="(a|aa)é"))
    constraint.consume(4)
    constraint.consume(4)
    with pytest.raises(InputError, match="no token of this vocabulary can follow"):
        constraint.allow(np.zeros(6, np.float32))


MALFORMED = [
    ("json_schema", "{", "EOF while parsing"),
    ("json_schema", "[1]", "object"),
    ("json_schema", "true", "object"),
    ("json_schema", '"\\ud800"', "hex escape"),
    ("json_schema", '{"type": "text"}', "Invalid type: text"),
    ("json_schema", '{"type": "integer", "minimum": 3, "maximum": 2}', "greater than maximum"),
    ("json_schema", '{"type": "string", "enum": [1]}', "Unsatisfiable"),
    ("json_schema", '{"not": {}}', "Unimplemented"),
    ("json_schema", '{"$ref": "file:///etc/passwd"}', "does not fetch"),
    ("json_schema", '{"$ref": "http://127.0.0.1:1/"}', "does not fetch"),
    ("regex", "(a", "unclosed group"),
    ("regex", "(?=a)b", "look-around"),
    ("regex", "\ud800", "surrogate"),
    ("lark", "", "Empty grammar"),
    ("lark", "\ud800", ""),
    ("lark", "start: missing", "unknown name"),
    ("lark", "start: start", "no token"),
    ("lark", "{}", "missing field"),
]


@pytest.mark.parametrize(("kind", "text", "reason"), MALFORMED)
def test_a_malformed_or_impossible_grammar_is_refused_with_the_reason_on_one_line(
    small: Constraints, kind: str, text: str, reason: str
) -> None:
    with pytest.raises(InputError, match=f"(?s)expected a .* got one with a fault: .*{reason}") as caught:
        small.begin(Grammar(kind=kind, text=text))  # type: ignore[arg-type]  # one of the three, from the table
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def doubling(count: int) -> str:
    rows = {f"d{n}": {"allOf": [{"anyOf": [{"$ref": f"#/$defs/d{n - 1}"}] * 2}] * 2} for n in range(1, count)}
    return json.dumps({"$defs": {"d0": {"type": "object"}} | rows, "$ref": f"#/$defs/d{count - 1}"})


def choices(count: int) -> str:
    return json.dumps({"allOf": [{"anyOf": [{"required": [f"p{n}"]}, {"required": [f"q{n}"]}]} for n in range(count)]})


def many_properties(count: int) -> str:
    return json.dumps({"properties": {f"p{n}": {} for n in range(count)}})


HOSTILE = {
    "itself": ("json_schema", '{"$ref": "#"}'),
    "itself twice": ("json_schema", '{"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}'),
    "itself and more": ("json_schema", '{"$ref": "#", "properties": {"a": {"$ref": "#"}}}'),
    "deep": ("json_schema", '{"properties": {"a": ' * 1500 + "{}" + "}}" * 1500),
    "doubling": ("json_schema", doubling(60)),
    "choices": ("json_schema", choices(30)),
    "multiples": ("json_schema", '{"type": "integer", "multipleOf": 999999937}'),
    "many properties": ("json_schema", many_properties(1500)),
    "too long": ("json_schema", json.dumps({"enum": [f"value {n}" for n in range(20_000)]})),
    "deep expression": ("regex", "(" * 20_000 + "a" + ")" * 20_000),
    "long repetition": ("regex", "(((a{100}){100}){100}){100}"),
    "exponential": ("regex", "(.*[ab].{12}|.*[bc].{13}|.*[cd].{14}){5}"),
    "never ends": ("lark", 'start: "a" start'),
    "many rules": ("lark", 'start: x{1000}\nx: y{1000}\ny: "a" "b"'),
}
CHILD = """
import json, resource, sys
import numpy as np
from gemmary.base.errors import InputError
from gemmary.generate.constrain import Constraints
from gemmary.generate.request import Grammar
from gemmary.generate.scripted import byte_tokenizer
constraints, draw = Constraints(byte_tokenizer()), np.random.default_rng(0)
constraints.begin(Grammar(kind="regex", text="a"))
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
for name, (kind, text) in json.load(sys.stdin).items():
    said, steps = "", 0
    try:
        constraint = constraints.begin(Grammar(kind=kind, text=text))
        for steps in range(1, 101):
            constraint.consume(int(draw.choice(np.flatnonzero(constraint.allow(np.zeros(263)) == 0))))
    except InputError as error:
        said = str(error)
    print(json.dumps([name, steps, said]))
"""


def test_hostile_grammars_end_in_bounded_time_and_memory() -> None:
    done = subprocess.run([sys.executable, "-c", CHILD], input=json.dumps(HOSTILE), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {name: (steps, said) for name, steps, said in map(json.loads, done.stdout.splitlines())}
    assert found.keys() == HOSTILE.keys()
    within_bounds = {"many properties", "exponential"}
    assert {name for name, (steps, said) in found.items() if steps == 100 and not said} == within_bounds
    refusal = re.compile("expected a (JSON schema|regular expression|grammar) .*, got .*: (make it|correct or).*")
    assert all(refusal.fullmatch(said) for name, (_, said) in found.items() if name not in within_bounds)


def test_without_llguidance_the_extra_is_named(
    small: Constraints, words: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)  # importing it is then an ImportError
    with pytest.raises(MissingExtraError, match=r"llguidance: pip install 'gemmary\[constrain\]'"):
        Constraints(words).begin(Grammar(kind="regex", text="a"))


def test_a_token_that_may_not_come_is_an_error(small: Constraints) -> None:
    constraint = small.begin(Grammar(kind="regex", text="a"))
    with pytest.raises(InputError, match="expected a token that the regular expression allows, got 104"):
        constraint.consume(6 + ord("b"))
