"""What makes a Whisper live: its latency modes, its parts for the engine, recordings as streams."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import chain

import torch

from pianissimo.audio.io import SAMPLE_RATE, Samples
from pianissimo.decoding.hotwords import Boost
from pianissimo.decoding.whisper import WhisperSearch
from pianissimo.decoding.whisper_live import WhisperLiveDecoder
from pianissimo.engine.live_model import LiveModel, fingerprint
from pianissimo.engine.whisper_slots import WhisperSecondPass, WhisperSlots
from pianissimo.errors import OptionError
from pianissimo.models.checkpoints.whisper import WhisperParts
from pianissimo.models.whisper import FRAME_SECONDS, LiveConfig, WhisperConfig, WhisperEncoder
from pianissimo.protocols import Recognizer
from pianissimo.streaming.endpoint import SegmentRules
from pianissimo.text.words import joined, segments_from_words
from pianissimo.transcript import Transcript

LONGEST_SEGMENT_SECONDS = 26.0
LEAST_SILENCE_SECONDS = 4.0
"""What the longest segment leaves of the positions, for silence behind it."""


def live_lookaheads(live: LiveConfig | None) -> dict[int, int]:
    """The lookahead in frames of each latency mode in milliseconds, shortest first."""
    chunks = sorted((live or LiveConfig()).chunk_frames)
    return {round(chunk * FRAME_SECONDS * 1000): chunk - 1 for chunk in chunks}


def chosen_lookahead(
    name: str, lookaheads: Mapping[int, int], live: LiveConfig | None, latency_ms: int | None
) -> int:
    """The lookahead of a latency mode, None being the usual one; OptionError if there is none."""
    if not lookaheads:
        raise OptionError(f"{name} translates, which is live from pause to pause only")
    if latency_ms is None:
        return (live or LiveConfig()).chunk_frames[0] - 1
    if latency_ms not in lookaheads:
        known = ", ".join(map(str, lookaheads))
        hint = "" if live else "; shorter ones need weights distilled for short chunks"
        raise OptionError(f"{latency_ms} ms is not a latency mode of {name} ({known}){hint}")
    return lookaheads[latency_ms]


def live_segments(config: WhisperConfig) -> SegmentRules:
    """Segments that fit into the positions of the encoder, with silence behind them."""
    room = config.audio_positions * FRAME_SECONDS - LEAST_SILENCE_SECONDS
    return SegmentRules(longest_seconds=min(LONGEST_SEGMENT_SECONDS, room))


def whisper_live_model(
    parts: WhisperParts,
    encoder: WhisperEncoder,
    live_encoder: WhisperEncoder | None,
    search: WhisperSearch,
    *,
    language: str | None,
    task: str,
) -> LiveModel:
    """The parts of a Whisper as the engine uses them, on its packed encoder and decoder.

    `live_encoder` is the packed encoder of live chunks, where that is another one.
    """
    slots = WhisperSlots(live_encoder or encoder, parts.live, encoder)
    with torch.inference_mode():
        decoder = WhisperLiveDecoder(
            search, parts.tokenizer, parts.rules, language, task, slots.silence()
        )
    stem = (parts.live_encoder or parts.network.encoder).conv1.parameters()
    digest = fingerprint((parts.network.config, parts.rules, parts.live), stem)
    return LiveModel(slots, decoder, digest, WhisperSecondPass(slots, decoder))


def transcribed_live(
    recognizer: Recognizer,
    blocks: Iterable[Samples],
    latency_ms: int,
    words: bool,
    boost: Boost | None = None,
) -> Transcript:
    """A recording pushed through a live stream with hotwords: its finals as one transcript."""
    events, samples = [], 0
    with recognizer.stream(latency_ms=latency_ms, boost=boost) as stream:
        for block in blocks:
            samples += len(block)
            events += stream.push(block)
        events += stream.finish()
    finals = [event for event in events if event.type == "final" and event.text]
    segments = segments_from_words(chain.from_iterable(final.words for final in finals))
    if not words:
        segments = tuple(replace(segment, words=()) for segment in segments)
    return Transcript(
        joined(final.text for final in finals),
        segments,
        tuple(word for segment in segments for word in segment.words),
        recognizer.language,
        samples / SAMPLE_RATE,
        recognizer.name,
        tuple(dict.fromkeys(reason for final in finals for reason in final.reasons)),
    )
