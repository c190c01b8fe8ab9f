# SPDX-License-Identifier: Apache-2.0
"""What clients may send: OpenAI's requests, as https://platform.openai.com/docs/api-reference has them, and ours.

Fields that mean nothing to one model on one machine (user, store, ...) are taken and have no effect; those that would
change the reply and are not offered are refused, as is every name that is not known. Our own additions are top_k, min_p
and repetition_penalty, the response formats regex and lark, and documents.
"""

import json
import secrets
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gemmary.base.errors import InputError
from gemmary.generate.request import MOST_ALTERNATIVES, Grammar, Request, Sampling

MOST_CHOICES = 16
MOST_INPUTS, MOST_EMBEDDED = 256, 2048
_UNBOUND = 2**31 - 1  # tokens: the context's end comes first
Text = Annotated[str, Field(min_length=1)]
Id = Annotated[int, Field(ge=0, le=2**31 - 1)]


class Body(BaseModel):
    """A JSON object none of whose names is unknown.

    >>> Body.model_config["extra"]
    'forbid'
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())


class Part(Body):
    """A piece of a message: text, this being a model of text.

    >>> Part(type="text", text="Hi").text
    'Hi'
    """

    type: Literal["text"]
    text: str


class Called(Body):
    """The function a reply called, with its arguments as JSON.

    >>> Called(name="add", arguments='{"a": 1}').name
    'add'
    """

    name: str
    arguments: str
    parsed_arguments: Any = None  # as openai's client gives a message back; what it was parsed from counts


class ToolCall(Body):
    """A call in a message of the assistant's.

    >>> ToolCall(id="call_1", function=Called(name="add", arguments="{}")).type
    'function'
    """

    id: str
    type: Literal["function"] = "function"
    function: Called


class ChatMessage(Body):
    """One message of a conversation.

    >>> ChatMessage(role="user", content=[Part(type="text", text="Hi")]).text
    'Hi'
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None
    parsed: Any = None

    @property
    def text(self) -> str:
        """What it says, its parts one after the other.

        >>> ChatMessage(role="assistant").text
        ''
        """
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or [])


class Function(Body):
    """A function the model may call; `parameters` is a JSON schema.

    >>> Function(name="now").parameters
    {}
    """

    name: Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,64}$")]
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)
    strict: bool | None = None


class Tool(Body):
    """A tool, which is always a function.

    >>> Tool(type="function", function=Function(name="now")).function.name
    'now'
    """

    type: Literal["function"]
    function: Function


class Named(Body):
    """A name alone.

    >>> Named(name="now").name
    'now'
    """

    name: str


class Chosen(Body):
    """The one tool that must be called.

    >>> Chosen(type="function", function=Named(name="now")).function.name
    'now'
    """

    type: Literal["function"]
    function: Named


class NamedSchema(Body):
    """A JSON schema with its name.

    >>> NamedSchema.model_validate({"name": "city", "schema": {"type": "object"}}).definition
    {'type': 'object'}
    """

    name: str
    definition: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Body):
    """What the reply must be.

    >>> ResponseFormat(type="json_object").grammar()
    Grammar(kind='json_schema', text='{"type": "object"}')
    """

    type: Literal["text", "json_object", "json_schema", "regex", "lark"]
    json_schema: NamedSchema | None = None
    regex: Text | None = None
    lark: Text | None = None

    def grammar(self) -> Grammar | None:
        """The grammar of such replies; raises InputError where what the type asks for is missing.

        >>> ResponseFormat(type="regex", regex="yes|no").grammar()
        Grammar(kind='regex', text='yes|no')
        """
        if self.type == "text":
            return None
        if self.type == "json_object":
            return Grammar(kind="json_schema", text=json.dumps({"type": "object"}))
        given = json.dumps(self.json_schema.definition) if self.json_schema else None
        text = {"json_schema": given, "regex": self.regex, "lark": self.lark}[self.type]
        if text is None:
            raise InputError(f"expected {self.type} in a response_format of this type, got none: put it there")
        return Grammar(kind=self.type, text=text)


class StreamOptions(Body):
    """What a stream says besides its tokens.

    >>> StreamOptions(include_usage=True).include_usage
    True
    """

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Settings(Body):
    """What chats and completions have in common.

    >>> request = Settings(stop="!").request([2, 651], max_tokens=5, seed=8, alternatives=None, grammar=None)
    >>> request.sampling.seed, request.sampling.temperature, request.stop
    (8, 1.0, ('!',))
    """

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=16)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: int | None = None  # these three as Sampling takes them
    min_p: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[Id, Annotated[float, Field(ge=-100, le=100)]] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None  # repetition_penalty is what there is
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    @property
    def num_choices(self) -> int:
        """How many replies are asked for.

        >>> Settings().num_choices
        1
        """
        return self.n or 1

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with what it cost.

        >>> Settings().wants_usage
        False
        """
        return bool(self.stream_options and self.stream_options.include_usage)

    def seeds(self) -> list[int]:
        """A seed for each choice: counted from the one that was given, or drawn.

        >>> Settings(seed=-1, n=2).seeds()
        [18446744073709551615, 0]
        """
        first = secrets.randbits(63) if self.seed is None else self.seed
        return [(first + choice) % 2**64 for choice in range(self.num_choices)]

    def request(
        self, ids: list[int], *, max_tokens: int | None, seed: int, alternatives: int | None, grammar: Grammar | None
    ) -> Request:
        """The Request of one choice; raises InputError as a Request does.

        >>> Settings(top_p=0).request([2], max_tokens=None, seed=0, alternatives=None, grammar=None).sampling.is_greedy
        True
        """
        temperature = 1.0 if self.temperature is None else self.temperature
        sampling = Sampling(
            temperature=0.0 if self.top_p == 0 else temperature,  # the protocol allows 0, which keeps the best alone
            top_k=self.top_k or 0,
            top_p=self.top_p or 1.0,
            min_p=self.min_p or 0.0,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            seed=seed,
        )
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Request(
            ids,
            max_tokens=_UNBOUND if max_tokens is None else max_tokens,
            sampling=sampling,
            stop=stop,
            grammar=grammar,
            bias=self.logit_bias or {},
            alternatives=alternatives,
        )


class ChatBody(Settings):
    """POST /v1/chat/completions.

    >>> ChatBody.model_validate({"messages": [{"role": "user", "content": "Hi"}]}).messages[0].text
    'Hi'
    """

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | Chosen | None = None
    parallel_tool_calls: bool | None = None  # a reply calls one function at most
    modalities: list[Literal["text"]] | None = None
    documents: bool | None = None  # answer from the documents that the server knows

    @property
    def alternatives(self) -> int | None:
        """How many probable tokens to report with each; InputError for top_logprobs without logprobs.

        >>> ChatBody.model_validate({"messages": [{"role": "user", "content": "Hi"}], "logprobs": True}).alternatives
        0
        """
        if self.top_logprobs is not None and not self.logprobs:
            raise InputError("expected logprobs true with top_logprobs, got none: say both")
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionBody(Settings):
    """POST /v1/completions: a prompt of text or token ids, or several.

    >>> CompletionBody(prompt=[[2, 651], [2]]).prompts
    [[2, 651], [2]]
    """

    prompt: (
        Text | Annotated[list[Id], Field(min_length=1)] | list[Text] | list[Annotated[list[Id], Field(min_length=1)]]
    )
    max_tokens: Annotated[int, Field(ge=1)] | None = 16
    logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None
    response_format: ResponseFormat | None = None
    echo: Literal[False] | None = None
    suffix: None = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, of which there is one or more.

        >>> CompletionBody(prompt="Hi").prompts
        ['Hi']
        """
        return many(self.prompt, MOST_INPUTS)


class EmbeddingBody(Body):
    """POST /v1/embeddings: a text or token ids, or several.

    >>> EmbeddingBody(input="Hi").inputs
    ['Hi']
    """

    input: Text | Annotated[list[Id], Field(min_length=1)] | list[Text] | list[Annotated[list[Id], Field(min_length=1)]]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: None = None
    user: str | None = None

    @property
    def inputs(self) -> list[str | list[int]]:
        """The inputs, of which there is one or more.

        >>> EmbeddingBody(input=[2, 651]).inputs
        [[2, 651]]
        """
        return many(self.input, MOST_EMBEDDED)


def many(given: str | list[int] | list[str] | list[list[int]], most: int) -> list[str | list[int]]:
    """The texts and lists of ids in what may be one alone; raises InputError for none or more than `most`.

    >>> many([2, 651], 9), many(["a", "b"], 9)
    ([[2, 651]], ['a', 'b'])
    """
    found: list[str | list[int]]
    if isinstance(given, str):
        found = [given]
    elif given and isinstance(given[0], int):
        found = [[each for each in given if isinstance(each, int)]]
    else:
        found = [each for each in given if not isinstance(each, int)]
    if not 1 <= len(found) <= most:
        raise InputError(f"expected 1 to {most} inputs, got {len(found)}: send them in several requests")
    return found
