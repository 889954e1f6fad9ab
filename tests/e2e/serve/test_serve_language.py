"""The language of a stream or recording, for a model with language prompts, in every dialect."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from serving import RATE, Server, as_heard, pcm, serving, speech, wav
from tiny import make_talker, tensor
from websockets.sync.client import ClientConnection, connect

from pianissimo.engine.single import SingleStream
from pianissimo.models.asr import LanguagePrompt, PromptConfig
from pianissimo.models.checkpoints.model_folder import load_model
from pianissimo.recognizers.fastconformer import NativeRecognizer

LANGUAGES = (LanguagePrompt("auto", 0), LanguagePrompt("de-DE", 1), LanguagePrompt("en-US", 2))
SOUND = as_heard(speech(4.0))
HALF = 2 * RATE


@pytest.fixture(scope="module")
def polyglot(tiny_model_folder: Path) -> NativeRecognizer:
    """A random model whose text depends on its language prompt."""
    _, tokenizer = load_model(tiny_model_folder)
    prompts = PromptConfig(count=3, hidden=16, default=0, languages=LANGUAGES)
    model = make_talker(-2.0, vocab_size=tokenizer.vocab_size, prompts=prompts, max_symbols=2)
    assert model.prompt is not None
    with torch.no_grad():
        model.prompt.up.weight[:, -prompts.count :] = 3 * tensor(prompts.hidden, prompts.count)
    return NativeRecognizer(model, tokenizer)


@pytest.fixture(scope="module")
def server(polyglot: NativeRecognizer) -> Iterator[Server]:
    with serving(polyglot) as running:
        yield running


@contextmanager
def socket_of(server: Server, path: str) -> Iterator[ClientConnection]:
    with connect(server.ws + path) as socket:
        yield socket


def finals_of(socket: ClientConnection) -> list[dict[str, Any]]:
    events = []
    while (event := json.loads(socket.recv(timeout=60)))["type"] not in ("end", "error"):
        events.append(event)
    return [event for event in [*events, event] if event["type"] in ("final", "error")]


def expected(polyglot: NativeRecognizer, language: str, change: str | None) -> list[str]:
    with polyglot.stream(latency_ms=160, endpoint=None, language=language) as stream:
        assert isinstance(stream, SingleStream)
        events = [*stream.push(SOUND[:HALF]), *stream.finalize()]
        if change is not None:
            stream.set_language(change)
        events += [*stream.push(SOUND[HALF:]), *stream.finish()]
    return [event.text for event in events if event.type == "final"]


def test_the_language_of_a_stream_changes_between_utterances(
    server: Server, polyglot: NativeRecognizer
) -> None:
    start = {"type": "start", "latency_ms": 160, "endpoint": None, "language": "de"}
    with socket_of(server, "/v1/stream") as socket:
        socket.send(json.dumps(start))
        socket.send(pcm(SOUND[:HALF]))
        socket.send(json.dumps({"type": "finalize"}))
        socket.send(json.dumps({"type": "language", "language": "en-US"}))
        socket.send(pcm(SOUND[HALF:]))
        socket.send(json.dumps({"type": "finish"}))
        finals = finals_of(socket)
    texts = [final["text"] for final in finals]
    assert texts == expected(polyglot, "de", "en-US")
    assert texts != expected(polyglot, "de", None)
    assert [final["language"] for final in finals] == ["de-DE", "en-US"]


def test_an_unknown_language_is_refused(server: Server) -> None:
    for messages in (
        [{"type": "start", "language": "fr"}],
        [{"type": "start"}, {"type": "language", "language": "fr"}],
    ):
        with socket_of(server, "/v1/stream") as socket:
            for message in messages:
                socket.send(json.dumps(message))
            [error] = finals_of(socket)
        assert error["type"] == "error" and "auto, de-DE, en-US" in error["message"]


def test_other_dialects_choose_the_language_too(server: Server, polyglot: NativeRecognizer) -> None:
    found = {}
    for language in ("de", "en-US"):
        form = {"model": polyglot.name, "language": language, "response_format": "verbose_json"}
        files = {"file": ("a.wav", wav(SOUND))}
        answer = httpx.post(
            server.http + "/v1/audio/transcriptions", data=form, files=files, timeout=60
        )
        assert answer.status_code == 200, answer.text
        same = polyglot.in_language(language).transcribe(SOUND, sample_rate=RATE)
        assert (answer.json()["text"], answer.json()["language"]) == (same.text, same.language)
        listen = server.http + f"/v1/listen?language={language}"
        deepgram = httpx.post(listen, content=wav(SOUND), timeout=60).json()
        found[language] = deepgram["results"]["channels"][0]["alternatives"][0]["transcript"]
        assert found[language] == same.text
    assert found["de"] != found["en-US"]
