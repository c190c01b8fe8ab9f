# SPDX-License-Identifier: Apache-2.0
"""From a client's messages to a conversation that Gemma's turns can hold, whatever their roles and order.

system, developer at the front ─► system text, with the tools'     what a tool gave ─► said by the user
system, developer later        ─► said by the user                 a call           ─► said by the model
the same role twice            ─► one turn (text/chat.py does that)
"""

import json
from collections.abc import Sequence
from itertools import takewhile

from gemmary.serve.schema import ChatMessage
from gemmary.serve.tools import Tools
from gemmary.text.chat import Message

_SYSTEM = ("system", "developer")


def conversation(messages: Sequence[ChatMessage], tools: Tools | None = None) -> list[Message]:
    """The conversation to reply to; a system text alone is taken as the user's.

    >>> said = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="developer", content="Rhyme.")]
    >>> conversation([*said, ChatMessage(role="user", content="Hi")])
    [Message(role='system', content='Be brief.\\n\\nRhyme.'), Message(role='user', content='Hi')]
    >>> conversation(said)
    [Message(role='user', content='Be brief.'), Message(role='user', content='Rhyme.')]
    """
    first = [message.text for message in takewhile(lambda each: each.role in _SYSTEM, messages)]
    rest = [_spoken(message, messages) for message in messages[len(first) :]]
    if not rest:
        rest, first = [Message("user", text) for text in first], []
    told = [*first, *([tools.described()] if tools else [])]
    return [*([Message("system", "\n\n".join(told))] if told else []), *rest]


def _spoken(message: ChatMessage, messages: Sequence[ChatMessage]) -> Message:
    if message.role == "assistant":
        calls = [_call(each.function.name, each.function.arguments) for each in message.tool_calls or ()]
        return Message("model", "\n".join([text for text in [message.text] if text] + calls))
    if message.role == "tool":
        names = {call.id: call.function.name for each in messages for call in each.tool_calls or ()}
        name = message.name or names.get(message.tool_call_id or "", "the function")
        return Message("user", f"{name} returned:\n{message.text}")
    return Message("user", message.text)


def _call(name: str, arguments: str) -> str:
    try:
        parameters = json.loads(arguments)
    except (ValueError, RecursionError):
        parameters = arguments  # what a client says the model said
    return json.dumps({"name": name, "parameters": parameters}, ensure_ascii=False)
