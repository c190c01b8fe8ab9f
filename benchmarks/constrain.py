# SPDX-License-Identifier: Apache-2.0
"""What a constraint costs a token: the mask of 262,144 pieces, put on the logits, and the step after the token.

    python benchmarks/constrain.py [--rounds 20]

The text of each grammar is consumed token by token as our tokenizer cuts it, with random logits; "begin" is from the
grammar's text to the first mask, its tokenizer being there. No engine runs. Nothing is recorded for a text that the
grammar does not allow. Milliseconds.
"""

import argparse
import json
import time

import numpy as np
from record import record

from gemmary.api import load_tokenizer
from gemmary.generate.constrain import Constraints
from gemmary.generate.request import Grammar
from gemmary.text.tokenizer import Tokenizer

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 80},
        "born": {"type": "string", "format": "date"},
        "books": {"type": "array", "items": {"type": "string"}},
        "living": {"type": "boolean"},
    },
    "required": ["name", "born", "books", "living"],
    "additionalProperties": False,
}
AUTHOR = {
    "name": "Charles Lutwidge Dodgson, who wrote as Lewis Carroll",
    "born": "1832-01-27",
    "books": ["Alice's Adventures in Wonderland", "Through the Looking-Glass, and What Alice Found There"],
    "living": False,
}
SUM = 'start: term (("+" | "-") term)*\nterm: atom (("*" | "/") atom)*\natom: /[0-9]+/ | "(" start ")"'
CASES = {
    "JSON by a schema": (Grammar(kind="json_schema", text=json.dumps(PERSON)), json.dumps(AUTHOR)),
    "any JSON object": (Grammar(kind="json_schema", text='{"type": "object"}'), json.dumps(AUTHOR)),
    "an expression": (
        Grammar(kind="regex", text=r"\p{Lu}\w*([ ,]+\w+)*\."),
        "The quick brown fox, it jumps, it sleeps.",
    ),
    "an expression that counts": (Grammar(kind="regex", text=r"(\w+[ ,.]+){1,40}"), "The quick brown fox, it jumps. "),
    "a grammar": (Grammar(kind="lark", text=SUM), "12*(3+45)-6/(7-(8+9*10))+11" * 3),
}


def measure(
    constraints: Constraints, tokenizer: Tokenizer, grammar: Grammar, text: str, rounds: int
) -> tuple[list[float], list[float]]:
    """Milliseconds of each beginning, and of each token."""
    logits = np.random.default_rng(0).standard_normal(tokenizer.vocab_size, dtype=np.float32)
    begins, steps = [], []
    for _ in range(rounds):
        before = time.perf_counter()
        constraint = constraints.begin(grammar)
        begins.append(1000 * (time.perf_counter() - before))
        for token_id in tokenizer.encode(text):
            before = time.perf_counter()
            masked = constraint.allow(logits)
            constraint.consume(token_id)
            steps.append(1000 * (time.perf_counter() - before))
            if not np.isfinite(masked[token_id]):
                raise SystemExit(f"expected {tokenizer.pieces[token_id]!r} to be allowed: nothing is recorded")
    return begins, steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    tokenizer = load_tokenizer()
    constraints, rows = Constraints(tokenizer), []
    constraints.begin(Grammar(kind="regex", text="a"))
    for name, (grammar, text) in CASES.items():
        begins, steps = measure(constraints, tokenizer, grammar, text, rounds)
        cells = [np.median(steps), np.quantile(steps, 0.99), np.median(begins)]
        rows.append([name, len(steps) // rounds, *(f"{value:.2f}" for value in cells)])
    columns = ["", "tokens", "a token, median", "a token, 99%", "begin"]
    record("constrain", columns, rows, command=f"python benchmarks/constrain.py --rounds {rounds}")


if __name__ == "__main__":
    main()
