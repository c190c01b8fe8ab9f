# SPDX-License-Identifier: Apache-2.0
"""A comparison to look at: as JSON for LLM Comparator (Kahng et al. 2024), or as one HTML file that needs nothing else.

SideBySide ─► write_comparator ─► .json ─► pair-code.github.io/llm-comparator
           ─► write_html       ─► .html ─► any browser: no script, nothing fetched, what models wrote is only ever text
"""

import json
from html import escape
from pathlib import Path

from gemmary.evaluate.side_by_side import Pair, Rating, SideBySide, Verdict
from gemmary.formats.storage import written_whole

Names = tuple[str, str]  # of A and of B

# LLM Comparator counts more than 0.25 as a win. With 1 for one, and no other scores, it would think of another scale.
_SCORES: dict[Verdict, float | None] = {"win": 0.5, "tie": 0.0, "loss": -0.5, "unreadable": None}
_STYLE = """\
:root { color-scheme: light dark; --win: #1a73e8; --tie: #9aa0a6; --loss: #e8710a; --line: #8884 }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
  background: #fff; color: #202124 }
h2, h3 { font-size: 1rem; margin: 0 0 .5rem }
article { border-top: 1px solid var(--line); padding: 1rem 0 }
pre { font: inherit; white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 }
.bar { display: flex; height: 1.5rem; border-radius: .25rem; overflow: hidden }
.win { background: var(--win) } .tie { background: var(--tie) } .loss { background: var(--loss) }
.key { display: inline-block; width: .8em; height: .8em; border-radius: .2em; margin: 0 .3em 0 1em }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; margin: .75rem 0 }
.two > div { border: 1px solid var(--line); border-radius: .25rem; padding: .75rem; min-width: 0 }
.two > .better { border: 2px solid currentColor }
@media (max-width: 40rem) { .two { grid-template-columns: 1fr } }
@media (prefers-color-scheme: dark) { body { background: #17181a; color: #e8eaed } }"""


def write_comparator(result: SideBySide, path: Path, names: Names = ("A", "B")) -> None:
    """Write the JSON that LLM Comparator reads. Raises FileError when that is not possible.

    >>> import tempfile
    >>> result = SideBySide(pairs=(Pair(prompt="Say hi.", reply_a="Hi.", reply_b="Hi."),))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_comparator(result, Path(folder, "hi.json"), ("old", "new"))
    ...     json.loads(Path(folder, "hi.json").read_text("utf-8"))["models"]
    [{'name': 'old'}, {'name': 'new'}]
    """
    content = {
        "metadata": {"source_path": path.name, "custom_fields_schema": []},
        "models": [{"name": name} for name in names],
        "examples": [_example(pair) for pair in result.pairs],
    }
    with written_whole(path) as file:
        file.write(json.dumps(content, indent=1).encode())


def write_html(result: SideBySide, path: Path, names: Names = ("A", "B")) -> None:
    """Write the page: rates and shares, then each prompt with both replies and what the judge said about them.

    Raises FileError when that is not possible.

    >>> import tempfile
    >>> result = SideBySide(pairs=(Pair(prompt="Say <b>.", reply_a="<b>", reply_b="<b>"),))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_html(result, Path(folder, "hi.html"), ("old", "new"))
    ...     "Say &lt;b&gt;." in Path(folder, "hi.html").read_text("utf-8")
    True
    """
    title = escape(f"{names[0]} and {names[1]} side by side")
    body = [_summary(result, names), *(_article(number, pair, names) for number, pair in enumerate(result.pairs, 1))]
    page = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title><style>
{_STYLE}
</style></head><body><h1>{title}</h1>
{"".join(body)}</body></html>
"""
    with written_whole(path) as file:
        file.write(page.encode("utf-8", "xmlcharrefreplace"))  # half a surrogate pair is no UTF-8


def _example(pair: Pair) -> dict[str, object]:
    return {
        "input_text": pair.prompt,
        "tags": [],
        "output_text_a": pair.reply_a,
        "output_text_b": pair.reply_b,
        "score": _SCORES[pair.verdict],
        "individual_rater_scores": [_rater_score(rating) for rating in pair.ratings],
        "rationale_list": [],
        "custom_fields": {},
    }


def _rater_score(rating: Rating) -> dict[str, object]:
    return {
        "is_flipped": rating.is_flipped,
        "score": _SCORES[rating.verdict],
        "rating_label": _label(rating.verdict, ("A", "B")),
        "rationale": rating.text,
        "custom_fields": {},
    }


def _summary(result: SideBySide, names: Names) -> str:
    notes = [f"Prompts: {len(result.pairs)}", f"without a readable verdict: {result.count('unreadable')}"]
    if result.first_share is not None:
        notes.append(f"preferences for the reply that the judge was shown first: {result.first_share:.1%}")
    below = f"<p>{'; '.join(notes)}.</p>\n"
    if result.shares is None:
        return below
    low, high = result.interval
    rate = f"{names[0]} wins {result.win_rate:.1%}, ties split evenly (95% interval {low:.1%} to {high:.1%})"
    verdicts: tuple[Verdict, ...] = ("win", "tie", "loss")
    shares = list(zip(verdicts, result.shares, strict=True))
    bar = "".join(f'<div class="{verdict}" style="width:{share:.3%}"></div>' for verdict, share in shares)
    key = "".join(
        f'<span class="key {each}"></span>{escape(_label(each, names))} {share:.1%}' for each, share in shares
    )
    return f'<p><strong>{escape(rate)}</strong></p>\n<div class="bar">{bar}</div>\n<p>{key}</p>\n{below}'


def _article(number: int, pair: Pair, names: Names) -> str:
    sides = zip(names, (pair.reply_a, pair.reply_b), ("win", "loss"), strict=True)
    replies = "".join(_reply(name, reply, is_better=pair.verdict == better) for name, reply, better in sides)
    rated = "".join(_details(rating, names) for rating in pair.ratings) or "<p>The replies are equal.</p>\n"
    heading = f"<h2>{number}: {escape(_label(pair.verdict, names))}</h2>\n<pre>\n{escape(pair.prompt)}</pre>"
    return f'<article>{heading}\n<div class="two">\n{replies}</div>\n{rated}</article>\n'


def _reply(name: str, reply: str, *, is_better: bool) -> str:
    kind = "better" if is_better else "other"
    return f'<div class="{kind}"><h3>{escape(name)}</h3><pre>\n{escape(reply)}</pre></div>\n'


def _details(rating: Rating, names: Names) -> str:
    shown = f"The judge, shown {names[rating.is_flipped]} first: {_label(rating.verdict, names)}"
    return f"<details><summary>{escape(shown)}</summary><pre>\n{escape(rating.text)}</pre></details>\n"


def _label(verdict: Verdict, names: Names) -> str:
    better = {"win": names[0], "loss": names[1]}.get(verdict)
    return f"{better} is better" if better is not None else "tie" if verdict == "tie" else "no readable verdict"
