# SPDX-License-Identifier: Apache-2.0
"""gemmary generate: continue a text."""

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemmary.cli import options

if TYPE_CHECKING:
    from gemmary.generate.generator import Generator
    from gemmary.generate.request import Request


def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text to continue; - reads it from stdin.")],
    model: options.Model = None,
    adapter: options.Adapter = None,
    max_tokens: options.MaxTokens = 256,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    seed: options.Seed = 0,
    stop: options.Stop = None,
    json_schema: options.JsonSchema = None,
    regex: options.Regex = None,
    grammar: options.GrammarFile = None,
    engine: options.Engine = "auto",
    backend: options.KerasBackend = None,
    dtype: options.Precision = "float32",
    max_length: options.MaxLength = None,
    draft: options.Draft = "lookup",
    as_json: options.AsJson = False,
) -> None:
    """Continue a text.

    Prints the continuation alone, as it comes. The text is taken as it stands: to ask an -it model something, use
    chat. With --json the reply comes when it is whole, with its token ids, why it ended and what it cost.
    --json-schema, --regex and --grammar need the extra gemmary[constrain].

    >>> generate("")
    Traceback (most recent call last):
    gemmary.base.errors.InputError: expected a prompt, got an empty one: ...
    """
    from gemmary.api import load, runtime
    from gemmary.formats.locate import DEFAULT
    from gemmary.generate.request import Request

    sampling = options.sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    ends = tuple(map(options.checked, stop or ()))
    follows = options.grammar(json_schema, regex, grammar)
    text = options.read_text(prompt)
    request = Request(text, max_tokens=max_tokens, sampling=sampling, stop=ends, grammar=follows)
    began = time.perf_counter()
    generator = load(
        model,
        adapter=adapter,
        engine=engine,
        backend=backend,
        dtype=dtype,
        max_length=max_length,
        num_slots=1,
        draft=draft,
    )
    load_seconds = time.perf_counter() - began
    if as_json:
        chosen = runtime(engine, backend)
        ran = {"model": model or DEFAULT, "adapter": adapter, "engine": chosen.engine, "backend": chosen.backend}
        options.print_json(ran | _report(generator, request, load_seconds))
    else:
        _print_stream(generator, request)


def _print_stream(generator: "Generator", request: "Request") -> None:
    """The reply on stdout as it becomes certain, and one line end unless it has one."""
    last = ""
    tokens = generator.stream(request)
    try:
        for token in tokens:
            sys.stdout.write(token.text)
            sys.stdout.flush()
            last = token.text or last
    finally:
        if not last.endswith("\n"):
            print(flush=True)


def _report(generator: "Generator", request: "Request", load_seconds: float) -> dict[str, Any]:
    [reply] = generator.complete([request])
    usage = reply.usage
    return {
        "text": reply.text,
        "ids": list(reply.ids),
        "finish_reason": reply.finish_reason,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "cached_tokens": usage.cached_tokens,
            "total": usage.total,
            "drafted_tokens": usage.drafted_tokens,
            "accepted_tokens": usage.accepted_tokens,
        },
        "timings": {
            "load_seconds": load_seconds,
            "prefill_seconds": usage.prefill_seconds,
            "decode_seconds": usage.decode_seconds,
            "prefill_tokens_per_second": _rate(usage.prompt_tokens - usage.cached_tokens, usage.prefill_seconds),
            "decode_tokens_per_second": _rate(usage.completion_tokens - 1, usage.decode_seconds),
        },
    }


def _rate(count: int, seconds: float) -> float | None:
    """Tokens a second; nothing where there were none."""
    return count / seconds if count > 0 and seconds > 0 else None
