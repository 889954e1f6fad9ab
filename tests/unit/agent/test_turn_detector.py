"""Turns of scripted voices: begin, pause, resume and end, at the times that the rules say."""

from dataclasses import replace

import numpy as np
import pytest

from pianissimo.agent import turn_detector
from pianissimo.agent.turn_detector import TurnSignal, VoiceTurns
from pianissimo.agent.turn_rules import EndJudge, EndJudgment, SilenceRule, TextRules, is_open
from pianissimo.audio.level import Samples
from pianissimo.audio.vad import WINDOW_SAMPLES, WINDOW_SECONDS, SpeechModel
from pianissimo.transcript import StreamEvent

NOTHING = np.zeros(0, np.float32)


@pytest.fixture(autouse=True)
def loudness_is_voice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window is voiced if it is not silent: turns are as the test writes them."""

    def step(self: SpeechModel, windows: Samples, state: Samples) -> tuple[Samples, Samples]:
        return (np.abs(windows[..., 64:]).max(axis=2) > 0.1).astype(np.float32), state

    monkeypatch.setattr(SpeechModel, "step", step)


def sound(script: str) -> Samples:
    """One window for each letter: `#` is voice, `.` is silence."""
    return np.concatenate(
        [np.full(WINDOW_SAMPLES, 0.5 if mark == "#" else 0.0, np.float32) for mark in script]
    )


def final(text: str) -> StreamEvent:
    return StreamEvent("final", text, (), 0.0, 1.0, reason="finalize")


def turns(script: str, judge: EndJudge, text: str = "", block: int = 700) -> list[tuple[str, int]]:
    """The signals and their windows; the text is final at each pause."""
    detector, samples = VoiceTurns(judge), sound(script)
    found: list[TurnSignal] = []
    for start in range(0, len(samples), block):
        signals = detector.push(samples[start : start + block])
        while signals:
            found += signals
            paused = signals[-1].kind == "paused"
            signals = detector.push(NOTHING, [final(text)]) if paused else []
    return [(signal.kind, round(signal.at / WINDOW_SECONDS)) for signal in found]


def test_a_turn_begins_after_four_windows_of_voice_and_ends_after_the_silence() -> None:
    script = "....##########" + "." * 20
    assert turns(script, SilenceRule(0.5)) == [
        ("started", 4),
        ("paused", 14),
        ("eager_end", 14),
        ("ended", 14),
    ]
    assert turns("...##..###..#...", SilenceRule(0.5)) == []


def test_the_end_comes_after_exactly_the_silence() -> None:
    detector = VoiceTurns(SilenceRule(0.5))
    detector.push(sound("########"))
    silence = 0
    signals: list[TurnSignal] = []
    while not any(signal.kind == "ended" for signal in signals):
        signals = detector.push(sound("."))
        silence += 1
    assert silence == 16  # of 32 ms


def test_a_speaker_who_goes_on_resumes_the_turn() -> None:
    script = "######" + "." * 10 + "##" + "####" + "." * 20
    kinds = [kind for kind, _ in turns(script, SilenceRule(0.5))]
    assert kinds == ["started", "paused", "eager_end", "resumed", "paused", "eager_end", "ended"]
    # A single window of voice is a click.
    script = "######" + "." * 10 + "#" + "." * 20
    assert turns(script, SilenceRule(0.5))[-1] == ("ended", 6)


@pytest.mark.parametrize("block", [1, 100, 512, 5000])
def test_blocks_of_any_size_give_the_same_turns(block: int) -> None:
    script = "..######" + "." * 12 + "####" + "." * 40 + "#####" + "." * 40
    if block == 1:
        script = "######" + "." * 18
    rules = TextRules()
    assert turns(script, rules, "so", block) == turns(script, rules, "so", 700)


@pytest.mark.parametrize(
    ("text", "windows", "eager"),
    [
        ("Turn it off.", 16, True),
        ("turn it off", 19, True),
        ("turn it off and", 32, False),
        ("I was, um", 32, False),
        ("", 32, False),
    ],
)
def test_the_text_decides_how_long_the_silence_is(text: str, windows: int, eager: bool) -> None:
    detector = VoiceTurns(TextRules())
    detector.push(sound("########"))
    kinds: list[str] = []
    count = 0
    while "ended" not in kinds:
        count += 1
        signals = detector.push(sound("."))
        kinds += [signal.kind for signal in signals]
        if kinds and kinds[-1] == "paused":
            kinds += [s.kind for s in detector.push(NOTHING, [final(text)])]
    assert count == windows
    assert ("eager_end" in kinds) is eager


def test_the_judge_hears_the_end_of_the_turn() -> None:
    heard: list[tuple[int, str]] = []

    class Judge:
        least_seconds = 0.3

        def judge(self, turn: Samples, text: str, ended: bool = False) -> EndJudgment:
            heard.append((len(turn), text))
            assert np.count_nonzero(turn) == 10 * WINDOW_SAMPLES
            return EndJudgment(1.0, 0.3)

    turns("." * 40 + "##########" + "." * 20, Judge(), "hello")
    ((length, text),) = heard
    assert text == "hello"
    before, silence = 16, 8  # windows: half a second, and the pause
    assert abs(length / WINDOW_SAMPLES - (before + 10 + silence)) <= 1


def test_without_the_model_the_energy_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn_detector, "available", lambda: False)
    detector, rate = VoiceTurns(SilenceRule(0.5)), 16_000
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    noise = np.random.default_rng(0).normal(0, 1e-3, rate)
    signals = []
    for part in (noise, tone, noise, noise):
        for piece in np.split(part.astype(np.float32), 100):
            signals += detector.push(piece)
    assert [s.kind for s in signals] == ["started", "paused", "eager_end", "ended"]
    assert 0.9 < signals[0].at < 1.1 and 1.9 < signals[-1].at < 2.2


def test_open_texts() -> None:
    assert all(map(is_open, ("to the", "well, um", "first,", "wait...", "with.")))
    assert not any(map(is_open, ("", "stop", "Stop it.", "what is it?", "four five")))


def test_a_token_of_the_recognizer_ends_turns_sooner_but_no_fixed_silence() -> None:
    def windows(judge: EndJudge, marked: bool) -> int:
        """The silence until the end of a turn."""
        detector, count, kinds = VoiceTurns(judge), 0, list[str]()
        detector.push(sound("########"))
        said = replace(final("turn it off"), turn="end" if marked else None)
        while "ended" not in kinds:
            count += 1
            kinds += [signal.kind for signal in detector.push(sound("."))]
            if kinds and kinds[-1] == "paused":
                kinds += [s.kind for s in detector.push(NOTHING, [said])]
        return count

    assert (windows(TextRules(), False), windows(TextRules(), True)) == (19, 13)
    assert windows(SilenceRule(0.5), True) == windows(SilenceRule(0.5), False) == 16
    assert windows(TextRules(most_seconds=0.3), True) == 10
