# SPDX-License-Identifier: Apache-2.0
"""Tools: functions described to the model, and replies that can only be text or a call that fits its schema.

    tools ─► system text: what there is, and the form of a call
          ─► grammar:  call | text          auto: what begins with { is a call
                       call                 required, or one by name
    reply {"name": "add", "parameters": {"a": 1}} ─► tool_calls

The form of a call is that of https://ai.google.dev/gemma/docs/capabilities/function-calling.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gemmary.base.errors import InputError
from gemmary.generate.request import Grammar
from gemmary.serve.schema import Called, Chosen, Function, Tool

_CALLING = """You can call these functions, each with its JSON schema:

{functions}

To call one, reply with one JSON object and nothing else: {{"name": the function's name, "parameters": its arguments}}.\
{unless}"""
_UNLESS = " Where none of them helps, reply in plain words."


@dataclass(frozen=True)
class Tools:
    """The functions a reply may call, or must.

    >>> tools = Tools.of([Tool(type="function", function=Function(name="now"))], "required")
    >>> tools.is_forced, tools.called('{"name": "now", "parameters": {}}').arguments
    (True, '{}')
    >>> tools.called("It is late.") is None
    True
    """

    functions: tuple[Function, ...]
    is_forced: bool

    @classmethod
    def of(cls, tools: Sequence[Tool] | None, choice: str | Chosen | None) -> "Tools | None":
        """The tools of a request, or None where there are none to call; InputError for a choice that is not there.

        >>> Tools.of([], "auto") is None
        True
        """
        functions = [tool.function for tool in tools or ()]
        if isinstance(choice, Chosen):
            functions = [each for each in functions if each.name == choice.function.name]
            if not functions:
                raise InputError(
                    f"expected a tool_choice among the tools, got {choice.function.name!r}: name one of them"
                )
        if choice == "required" and not functions:
            raise InputError("expected tools with tool_choice 'required', got none: send some")
        if choice == "none" or not functions:
            return None
        return cls(tuple(functions), is_forced=choice not in (None, "auto"))

    def described(self) -> str:
        """What the model is told of them.

        >>> print(Tools((Function(name="now", description="The time."),), is_forced=True).described())
        You can call these functions, each with its JSON schema:
        <BLANKLINE>
        {"name": "now", "description": "The time.", "parameters": {}}
        <BLANKLINE>
        To call one, reply with one JSON object and nothing else: {"name": ..., "parameters": its arguments}.
        """
        lines = [
            json.dumps({"name": each.name, "description": each.description, "parameters": each.parameters})
            for each in self.functions
        ]
        return _CALLING.format(functions="\n".join(lines), unless="" if self.is_forced else _UNLESS)

    def grammar(self) -> Grammar:
        """What a reply can be.

        >>> Tools((Function(name="now"),), is_forced=True).grammar().kind
        'json_schema'
        """
        schema = json.dumps(self._schema())
        if self.is_forced:
            return Grammar(kind="json_schema", text=schema)
        return Grammar(kind="lark", text=f'start: call | text\ntext: /[^{{](?s:.)*/ | ""\ncall: %json {schema}\n')

    def called(self, reply: str) -> Called | None:
        """The call that a whole reply is; None for one that is text, or was cut.

        >>> Tools((Function(name="now"),), is_forced=False).called('{"name": "no') is None
        True
        """
        if not reply.startswith("{"):
            return None
        try:
            said = json.loads(reply, parse_constant=_refuse, parse_float=_finite)
        except (ValueError, RecursionError):
            return None
        if said.get("name") not in {each.name for each in self.functions} or "parameters" not in said:
            return None
        return Called(name=said["name"], arguments=json.dumps(said["parameters"], ensure_ascii=False))

    def _schema(self) -> dict[str, Any]:
        definitions: dict[str, Any] = {}
        calls = []
        for each in self.functions:
            # arguments that a function does not name would be an error in it
            more = {"additionalProperties": False} if "properties" in each.parameters else {}
            parameters = {"type": "object", **more, **each.parameters}
            for key in ("$defs", "definitions"):  # references to them count from the root
                given = parameters.pop(key, {})
                if not isinstance(given, dict):
                    raise InputError(f"expected {key} with a schema for each name, got {given!r}: correct the tool")
                for name, definition in given.items():
                    if definitions.setdefault(key, {}).setdefault(name, definition) != definition:
                        raise InputError(f"expected one {key}/{name} in all tools, got two: give them different names")
            calls.append(
                {
                    "type": "object",
                    "properties": {"name": {"const": each.name}, "parameters": parameters},
                    "required": ["name", "parameters"],
                    "additionalProperties": False,
                }
            )
        return {"anyOf": calls, **definitions}


def _finite(digits: str) -> float:
    return float(digits) if math.isfinite(float(digits)) else _refuse(digits)


def _refuse(digits: str) -> float:
    raise ValueError(f"expected a number that JSON has, got {digits}: write a smaller one")
