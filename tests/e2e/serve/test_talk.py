"""`pianissimo talk`: its client of the realtime socket, without devices."""

import asyncio
import queue
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import soxr
from scripted_llm import Reply, scripted, words
from serving import CLIPS, RATE, pcm

from pianissimo.audio.io import load_audio
from pianissimo.cli import main, talk
from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.serve.settings import Settings

pytest.importorskip("hibari", reason="the voice needs pianissimo[tts]")


def test_the_player_knows_what_it_played() -> None:
    player = talk.Player()
    assert player.stop() is None and not player.audible
    player.add("a", b"\1" * 4800)  # 100 ms
    assert player.take(2400) == b"\1" * 2400
    player.add("b", b"\2" * 4800)
    assert player.take(4800) == b"\1" * 2400 + b"\2" * 2400
    assert player.audible and player.item_id == "b"
    assert player.stop() == 50
    assert player.take(8) == bytes(8) and player.stop() is None
    assert player.audible  # the room still has its sound


@pytest.mark.parametrize("full_duplex", [False, True], ids=["loudspeaker", "headphones"])
def test_a_conversation(
    embedded: NativeRecognizer, capsys: pytest.CaptureFixture[str], full_duplex: bool
) -> None:
    """The user speaks, and speaks again while the answer is played."""
    sound = pcm(soxr.resample(load_audio(CLIPS / "number.flac"), RATE, talk.RATE))
    story = "This is a long story. " * 6
    heard: queue.Queue[bytes] = queue.Queue()
    player = talk.Player()
    size = 2 * round(talk.BLOCK_SECONDS * talk.RATE)

    async def converse(port: int) -> None:
        client = asyncio.create_task(talk.Talk(player, full_duplex).run(port, heard))
        script, played = sound + bytes(size * 30), 0.0
        end = time.monotonic() + (14 if full_duplex else 10)
        while time.monotonic() < end and not client.done():
            block, script = script[:size].ljust(size, b"\0"), script[size:]
            heard.put(block)
            played += any(player.take(size)) * talk.BLOCK_SECONDS
            if 1.0 < played < 9.0:  # speak into the answer, once
                script, played = script + sound, 10.0
            await asyncio.sleep(talk.BLOCK_SECONDS)
        client.cancel()
        await asyncio.gather(client, return_exceptions=True)

    with scripted(Reply(words(story), gap_seconds=0.1), "Good bye.") as fake:
        settings = Settings(llm_url=fake.url, llm_model="scripted")
        with talk.serving(settings, embedded) as port:
            asyncio.run(converse(port))
    out, err = capsys.readouterr()
    assert out.startswith("you: enter four five two nine\n") and "agent: This is a long" in out
    assert "voice to voice:" in err
    if full_duplex:
        assert "agent: Good bye." in out and out.count("you: enter four five two nine") == 2
        cut = [m["content"] for m in fake.requests[-1]["messages"] if m["role"] == "assistant"]
        assert cut[0].endswith(" —") and len(cut[0].split()) < 15
    else:
        assert len(fake.requests) == 1 and "Good bye" not in out


def test_push_to_talk(embedded: NativeRecognizer, capsys: pytest.CaptureFixture[str]) -> None:
    """Two turns between presses, the second of them into the answer; one press by mistake."""
    sound = pcm(soxr.resample(load_audio(CLIPS / "number.flac"), RATE, talk.RATE))
    story = "This is a long story. " * 6
    heard: queue.Queue[bytes] = queue.Queue()
    presses: queue.Queue[str] = queue.Queue()
    player = talk.Player()
    size = 2 * round(talk.BLOCK_SECONDS * talk.RATE)
    played = 0  # blocks

    async def until(condition: Callable[[], bool]) -> None:
        """Play and record silence until then."""
        nonlocal played
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end
            heard.put(bytes(size))
            played += any(player.take(size))
            await asyncio.sleep(talk.BLOCK_SECONDS / 2)

    async def turn(client: talk.PushToTalk) -> None:
        presses.put("\n")
        await until(lambda: client.speaking)
        for start in range(0, len(sound), size):
            heard.put(sound[start : start + size])
        await until(heard.empty)
        presses.put("\n")
        await until(lambda: not client.speaking)

    async def converse(port: int) -> None:
        client = talk.PushToTalk(player, presses.get)
        running = asyncio.create_task(client.run(port, heard))
        for _ in range(2):
            before = played
            await turn(client)
            await until(lambda before=before: played > before + 20)  # type: ignore[misc]
        for _ in range(2):  # too short
            presses.put("\n")
        await until(lambda: presses.empty() and not client.speaking)
        presses.put("")  # the end of stdin
        await asyncio.wait_for(running, 10)

    with scripted(Reply(words(story), gap_seconds=0.1), "Good bye.") as fake:
        settings = Settings(llm_url=fake.url, llm_model="scripted")
        with talk.serving(settings, embedded) as port:
            asyncio.run(converse(port))
    out, err = capsys.readouterr()
    assert out.count("you: enter four five two nine\n") == 2 and "agent: Good bye." in out
    assert "voice to voice:" in err and "too short" in err and "error" not in err
    assert len(fake.requests) == 2
    (answer,) = [m["content"] for m in fake.requests[1]["messages"] if m["role"] == "assistant"]
    assert answer.endswith(" —") and len(answer.split()) < 20


def test_a_model_that_fails_is_told(
    embedded: NativeRecognizer, capsys: pytest.CaptureFixture[str]
) -> None:
    client = talk.Talk(talk.Player(), False)
    error = {"message": "the language model is down"}
    response = {"status_details": {"type": "failed", "error": error}}
    event: dict[str, Any] = {"type": "response.done", "response": response}
    asyncio.run(client._follow(None, event))
    assert "the language model is down" in capsys.readouterr().err


def test_an_address_that_is_none_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(talk, "sounddevice_package", lambda: np)
    assert main(["talk", "--llm-url", "nonsense", "-m", "embedded-commands"]) == 2
    assert "http://127.0.0.1:11434/v1" in capsys.readouterr().err
