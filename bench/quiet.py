"""CPU time of the gain for a live stream and a recording, as a share of one core.

    python bench/quiet.py [--seconds 120]

CPU time of this process is measured, which depends little on other load. Streams are
fed blocks of the sizes that clients send; the target is under 0.5 % of a core per stream.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pianissimo.audio.front_end import FrontEnd
from pianissimo.audio.io import SAMPLE_RATE, load_audio
from pianissimo.audio.level import amplitude
from pianissimo.audio.vad import SpeechModel, VoiceDetector, available

CLIPS = sorted((Path(__file__).parents[1] / "examples" / "audio").glob("*.flac"))
BLOCKS_MS = (10, 20, 40, 80, 160, 560, 1120)
ROUNDS = 5
TARGET_PERCENT = 0.5


def speech(seconds: float) -> np.ndarray:
    """The example clips over and over at -45 dB, with a little noise, in 16 bits."""
    clips = np.concatenate([load_audio(path) for path in CLIPS])
    count = round(seconds * SAMPLE_RATE)
    samples = np.tile(clips, -(-count // len(clips)))[:count] * amplitude(-25)
    noise = np.random.default_rng(0).standard_normal(count) * amplitude(-75)
    return (np.round((samples + noise) * 32768) / 32768).astype(np.float32)


def percent_of_core(work: Callable[[], object], seconds: float) -> float:
    """CPU time of the fastest round over the length of the audio, in percent."""
    work()
    times = []
    for _ in range(ROUNDS):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return round(100 * min(times) / seconds, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120.0, help="audio per measurement")
    options = parser.parse_args()
    samples, seconds = speech(options.seconds), options.seconds
    front_end = FrontEnd("on")
    loud = samples * amplitude(45)  # the limiter is always active

    def live(x: np.ndarray, block: int) -> None:
        state = front_end.start(live=True)
        for start in range(0, len(x), block):
            front_end.push(x[start : start + block], state)
        front_end.finish(state)

    def detect(detector: VoiceDetector) -> None:
        state = detector.start()
        for start in range(0, len(samples), SAMPLE_RATE):
            detector.push(samples[start : start + SAMPLE_RATE], state)
        detector.finish(state)

    table: dict[str, float] = {}
    for ms in BLOCKS_MS:
        table[f"stream, blocks of {ms} ms"] = percent_of_core(
            lambda ms=ms: live(samples, ms * SAMPLE_RATE // 1000), seconds
        )
    table["stream, blocks of 80 ms, limiting"] = percent_of_core(lambda: live(loud, 1280), seconds)
    table["recording"] = percent_of_core(lambda: front_end.whole(samples), seconds)
    table["detector, energy only"] = percent_of_core(lambda: detect(VoiceDetector()), seconds)
    if available():
        detector = VoiceDetector(model=SpeechModel())
        table["detector with model"] = percent_of_core(lambda: detect(detector), seconds)
    slow = [name for name in table if name.startswith("stream") and table[name] > TARGET_PERCENT]
    print(json.dumps({"percent of a core": table, f"over {TARGET_PERCENT} %": slow}, indent=2))


if __name__ == "__main__":
    main()
