"""A language model behind an OpenAI-compatible chat endpoint, streamed token by token.

llama.cpp, Ollama, vLLM and hosted services speak it: `POST {url}/chat/completions` with
`stream=true`, answered by server-sent events. Closing the response cancels the generation there.
"""

import asyncio
import ipaddress
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal, TypeAlias
from urllib.parse import urlsplit

import httpx

from pianissimo.errors import (
    LanguageModelReplyError,
    LanguageModelTimeoutError,
    LanguageModelUnreachableError,
    OptionError,
)

JsonObject: TypeAlias = dict[str, object]
FinishReason = Literal["stop", "tool_calls", "length", "content_filter"]
CONNECT_SECONDS = 5.0
FIRST_TOKEN_SECONDS = 15.0
"""Default patience: a model on a laptop may first read a long conversation."""
LONGEST_EVENT_BYTES = 1 << 20
LONGEST_SHOWN_ERROR = 300
_LINE_END = b"\n"
_NO_CHUNK = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What reading JSON of another shape raises."""


@dataclass(frozen=True)
class ChatOptions:
    """Which endpoint to ask. `url` ends before /chat/completions, mostly in /v1.

    `timeout_seconds` is the longest wait for a first token, and between two. Raises OptionError for
    a URL that is not one of HTTP.
    """

    url: str
    model: str
    key: str | None = None
    timeout_seconds: float = FIRST_TOKEN_SECONDS

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise OptionError(
                f"the language model's URL is {self.url!r}; expected something like "
                "http://127.0.0.1:11434/v1"
            )
        if not self.model.strip():
            raise OptionError("the language model needs a name, such as llama3.2")
        if self.timeout_seconds <= 0:
            raise OptionError("the timeout of the language model must be above 0 seconds")

    @property
    def loopback(self) -> bool:
        """Whether the endpoint runs on this machine."""
        host = urlsplit(self.url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"


@dataclass(frozen=True)
class ChatRequest:
    """What the model is asked: messages and tools in the format of the endpoint."""

    messages: Sequence[Mapping[str, object]]
    tools: Sequence[Mapping[str, object]] = ()
    tool_choice: object = "auto"
    parallel_tool_calls: bool | None = None
    max_tokens: int | None = None
    temperature: float | None = None


@dataclass(frozen=True)
class TextDelta:
    """More of the answer's text."""

    text: str


@dataclass(frozen=True)
class ToolCallDelta:
    """More of a tool call; `index` tells the calls of one answer apart.

    Id and name come with the first piece, the arguments are joined from all pieces.
    """

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class ChatEnd:
    """The answer is complete. Token counts are 0 where the endpoint does not tell them."""

    reason: FinishReason
    input_tokens: int = 0
    output_tokens: int = 0


ChatEvent: TypeAlias = TextDelta | ToolCallDelta | ChatEnd


class ChatModel:
    """A client of one endpoint with a pool of connections; used in one event loop, then closed."""

    def __init__(self, options: ChatOptions) -> None:
        self.options = options
        headers = {"authorization": f"Bearer {options.key}"} if options.key else {}
        timeout = httpx.Timeout(options.timeout_seconds, connect=CONNECT_SECONDS)
        # Proxies of the environment are for other machines.
        self._client = httpx.AsyncClient(
            headers=headers, timeout=timeout, trust_env=not options.loopback
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ChatEvent]:
        """The answer as it is written; the last event is a `ChatEnd`. Close it to cancel.

        Raises LanguageModelUnreachableError, LanguageModelTimeoutError, and
        LanguageModelReplyError for an error status, a reply that is no stream of chat chunks, and
        one that ends early.
        """
        url = self.options.url.rstrip("/") + "/chat/completions"
        reply = _Reply(self.options.url)
        try:
            async with (
                asyncio.timeout(self.options.timeout_seconds) as patience,
                self._client.stream("POST", url, json=self._body(request)) as response,
            ):
                if response.status_code != httpx.codes.OK:
                    raise await self._refused(response)
                async with aclosing(_events(response)) as events:
                    async for data in events:
                        for event in reply.read(data):
                            # The consumer may take its time; only the endpoint is timed.
                            patience.reschedule(None)
                            yield event
                            patience.reschedule(self._deadline())
                        if reply.done:
                            break
        except TimeoutError as error:
            raise self._late() from error
        except httpx.TimeoutException as error:
            raise self._late() from error
        except httpx.RemoteProtocolError as error:
            raise LanguageModelReplyError(
                f"the language model at {self.options.url} closed the connection in the middle of "
                f"a reply: {error}; see its log"
            ) from error
        except httpx.HTTPError as error:
            raise LanguageModelUnreachableError(
                f"the language model at {self.options.url} cannot be reached "
                f"({error or type(error).__name__}); start it, or correct --llm-url"
            ) from error
        yield reply.end()

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self.options.timeout_seconds

    def _late(self) -> LanguageModelTimeoutError:
        return LanguageModelTimeoutError(
            f"the language model at {self.options.url} wrote nothing for "
            f"{self.options.timeout_seconds:g} s; use a smaller model, or raise --llm-timeout"
        )

    def _body(self, request: ChatRequest) -> JsonObject:
        body: JsonObject = {
            "model": self.options.model,
            "messages": list(request.messages),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if request.tools:
            body["tools"] = list(request.tools)
            body["tool_choice"] = request.tool_choice
            if request.parallel_tool_calls is not None:
                body["parallel_tool_calls"] = request.parallel_tool_calls
        if request.max_tokens is not None:
            body["max_tokens"] = request.max_tokens
        if request.temperature is not None:
            body["temperature"] = request.temperature
        return body

    async def _refused(self, response: httpx.Response) -> LanguageModelReplyError:
        said = b""
        async for piece in response.aiter_bytes():
            said += piece
            if len(said) > LONGEST_SHOWN_ERROR:
                break
        shown = " ".join(said[:LONGEST_SHOWN_ERROR].decode(errors="replace").split())
        return LanguageModelReplyError(
            f"the language model at {self.options.url} answered status {response.status_code}: "
            f"{shown}; check --llm-model and --llm-key"
        )


class _Reply:
    """Turns the data of server-sent events into chat events, and checks that the reply is whole."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.done = False
        self._reason: FinishReason | None = None
        self._usage = (0, 0)

    def read(self, data: str) -> list[ChatEvent]:
        if data == "[DONE]":
            self.done = True
            return []
        try:
            chunk = json.loads(data)
            if chunk.get("error"):
                raise self._unusable(f"reported an error: {data[:LONGEST_SHOWN_ERROR]}")
            if usage := chunk.get("usage"):
                found = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
                self._usage = (int(found[0] or 0), int(found[1] or 0))
            events: list[ChatEvent] = []
            for choice in (chunk.get("choices") or ())[:1]:
                delta = choice.get("delta") or {}
                if text := delta.get("content"):  # reasoning_content is never spoken
                    events.append(TextDelta(str(text)))
                for call in delta.get("tool_calls") or ():
                    function = call.get("function") or {}
                    events.append(
                        ToolCallDelta(
                            int(call.get("index") or 0),
                            str(call.get("id") or ""),
                            str(function.get("name") or ""),
                            str(function.get("arguments") or ""),
                        )
                    )
                if reason := choice.get("finish_reason"):
                    known = ("tool_calls", "length", "content_filter")
                    self._reason = reason if reason in known else "stop"
        except _NO_CHUNK as error:
            raise self._unusable(f"sent something that is no chat chunk: {data[:80]!r}") from error
        return events

    def end(self) -> ChatEnd:
        """Raises LanguageModelReplyError if the reply is not whole."""
        if self._reason is None and not self.done:
            raise self._unusable("ended its reply early")
        return ChatEnd(self._reason or "stop", *self._usage)

    def _unusable(self, what: str) -> LanguageModelReplyError:
        return LanguageModelReplyError(
            f"the language model at {self._url} {what}; see its log, or check --llm-url"
        )


async def _events(response: httpx.Response) -> AsyncGenerator[str]:
    """The data of each server-sent event of a response; comments are dropped.

    Raises LanguageModelReplyError for a line longer than `LONGEST_EVENT_BYTES` and for other text.
    """
    rest = b""
    async for piece in response.aiter_bytes():
        *lines, rest = (rest + piece).split(_LINE_END)
        for line in lines:
            if data := _data(line):
                yield data
        if len(rest) > LONGEST_EVENT_BYTES:
            raise LanguageModelReplyError(
                f"the language model sent a line of more than {LONGEST_EVENT_BYTES >> 20} MiB; "
                "check --llm-url"
            )
    if data := _data(rest):
        yield data


def _data(line: bytes) -> str:
    text = line.decode(errors="replace").strip()
    name, _, value = text.partition(":")
    if not text or not name or name in ("event", "id", "retry"):
        return ""
    if name != "data":
        raise LanguageModelReplyError(
            f"the language model answered without a stream of events: {text[:80]!r}; "
            "check that --llm-url is an OpenAI-compatible endpoint"
        )
    return value.strip()
