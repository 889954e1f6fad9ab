"""The client of a chat endpoint: streamed text and tools, and every way an endpoint can fail."""

import asyncio
import socket
from contextlib import aclosing
from typing import Any

import pytest
from scripted_llm import FakeLLM, Reply, call, scripted, words

from pianissimo.agent.chat import (
    ChatEnd,
    ChatEvent,
    ChatModel,
    ChatOptions,
    ChatRequest,
    TextDelta,
    ToolCallDelta,
)
from pianissimo.errors import (
    LanguageModelReplyError,
    LanguageModelTimeoutError,
    LanguageModelUnreachableError,
    OptionError,
)

HELLO = ChatRequest([{"role": "user", "content": "hello"}])


def ask(url: str, request: ChatRequest = HELLO, **options: Any) -> list[ChatEvent]:
    async def collect() -> list[ChatEvent]:
        model = ChatModel(ChatOptions(url, "m", **options))
        try:
            return [event async for event in model.stream(request)]
        finally:
            await model.close()

    return asyncio.run(collect())


def test_text_arrives_in_pieces_with_its_usage() -> None:
    with scripted("Seven streams at once.") as fake:
        events = ask(fake.url + "/", key="secret")
    assert [e.text for e in events if isinstance(e, TextDelta)] == words("Seven streams at once.")
    assert events[-1] == ChatEnd("stop", 11, 4)
    assert fake.keys == ["Bearer secret"]
    sent = fake.requests[0]
    assert sent["model"] == "m" and sent["stream"] is True and "tools" not in sent
    assert sent["messages"] == [{"role": "user", "content": "hello"}]


def test_tool_calls_arrive_in_pieces() -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    reply = Reply([*call("look", '{"at": 1}'), *call("look", "{}", 1, "b")], finish="tool_calls")
    with scripted(reply) as fake:
        events = ask(fake.url, ChatRequest(HELLO.messages, tools, "required", max_tokens=9))
    found: dict[int, str] = {}
    for event in events[:-1]:
        assert isinstance(event, ToolCallDelta)
        found[event.index] = found.get(event.index, "") + event.arguments
    assert found == {0: '{"at": 1}', 1: "{}"} and events[-1].reason == "tool_calls"
    sent = fake.requests[0]
    assert (sent["tools"], sent["tool_choice"], sent["max_tokens"]) == (tools, "required", 9)


def test_reasoning_is_not_part_of_the_answer() -> None:
    with scripted(Reply([{"reasoning_content": "hm"}, {"content": "Yes."}])) as fake:
        events = ask(fake.url)
    assert events[0] == TextDelta("Yes.") and len(events) == 2


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (Reply(status=500), "status 500"),
        (Reply(status=404, raw=b'{"error": "no model m"}'), "no model m"),
        (Reply(raw=b"<html>a page</html>"), "without a stream"),
        (Reply(raw=b"data: {broken\n\n"), "no chat chunk"),
        (Reply(raw=b"data: [1]\n\n"), "no chat chunk"),
        (Reply(raw=b'data: {"choices": [7]}\n\n'), "no chat chunk"),
        (Reply(raw=b'data: {"usage": {"prompt_tokens": Infinity}}\n\n'), "no chat chunk"),
        (Reply(raw=b'data: {"error": {"message": "out of memory"}}\n\n'), "out of memory"),
        (Reply(raw=b"data: " + b"x" * (3 << 20)), "more than 1 MiB"),
        (Reply(raw=b"\xff\xfe\x00"), "without a stream"),
        (Reply(words("and then"), ends_early=True), "ended its reply early"),
        (Reply(words("and then"), breaks=True), "closed the connection"),
        (Reply(raw=b"\n"), "ended its reply early"),
    ],
)
def test_unusable_replies_are_errors(reply: Reply, told: str) -> None:
    with scripted(reply) as fake, pytest.raises(LanguageModelReplyError, match=told):
        ask(fake.url)


def test_a_model_that_is_down_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(LanguageModelUnreachableError, match="cannot be reached"):
        ask(f"http://127.0.0.1:{port}/v1")


@pytest.mark.parametrize(
    "reply",
    [Reply(["late"], first_seconds=9.0), Reply(["a", "b"], gap_seconds=9.0)],
    ids=["first token", "gap"],
)
def test_a_slow_model_is_given_up(reply: Reply) -> None:
    with scripted(reply) as fake:
        with pytest.raises(LanguageModelTimeoutError, match="wrote nothing for"):
            ask(fake.url, timeout_seconds=0.3)
        fake.wait_until_left()
        assert fake.hung_up == 1


def test_a_slow_reader_does_not_count_as_a_slow_model() -> None:
    async def read(url: str) -> int:
        model, count = ChatModel(ChatOptions(url, "m", timeout_seconds=0.2)), 0
        async for _ in model.stream(HELLO):
            await asyncio.sleep(0.15)
            count += 1
        await model.close()
        return count

    with scripted("one two three") as fake:
        assert asyncio.run(read(fake.url)) == 4


def test_closing_the_stream_hangs_up() -> None:
    async def leave(fake: FakeLLM) -> None:
        model = ChatModel(ChatOptions(fake.url, "m"))
        async with aclosing(model.stream(HELLO)) as events:
            async for _ in events:
                break
        await asyncio.to_thread(fake.wait_until_left)
        await model.close()

    with scripted(Reply(words("a b c d e f"), gap_seconds=1.0)) as fake:
        asyncio.run(leave(fake))
        assert fake.hung_up == 1


@pytest.mark.parametrize(
    ("url", "model"), [("127.0.0.1:11434", "m"), ("ftp://x/v1", "m"), ("http://x/v1", " ")]
)
def test_unusable_options_are_refused(url: str, model: str) -> None:
    with pytest.raises(OptionError):
        ChatOptions(url, model)


def test_loopback_is_told_from_other_hosts() -> None:
    told = {
        url: ChatOptions(url, "m").loopback for url in ("http://[::1]:1", "http://localhost/v1")
    }
    assert all(told.values()) and not ChatOptions("https://api.example.com/v1", "m").loopback
