"""Synthetic speech by the free synthesizers of a Linux distribution, as files or during training.

Five programs, each with several voices: espeak-ng (formants, many speaker variants), flite,
festival, SVOX pico and RHVoice. Their output has no license restrictions; voices with restricted
licenses (mbrola, two of RHVoice) are excluded. None sounds like a person, so training data should
also contain human recordings.
"""

import hashlib
import json
import random
import re
import shutil
import subprocess
import tempfile
import wave
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pianissimo.audio.io import SAMPLE_RATE, Samples, load_audio
from pianissimo.errors import OptionError, PianissimoError
from pianissimo.train.augment import cut_weak_ends

ENGINES = {
    "espeak-ng": "espeak-ng",
    "flite": "flite",
    "festival": "text2wave",
    "pico": "pico2wave",
    "rhvoice": "RHVoice-test",
}
"""Name of a synthesizer -> its program."""
SHARES = {"espeak-ng": 0.4, "flite": 0.25, "pico": 0.2, "festival": 0.15, "rhvoice": 0.3}
"""The relative frequency of each; missing programs are skipped."""
ACCENTS = (
    "en-us en-us en-us en-us-nyc en-gb en-gb-x-rp en-gb-scotland en-gb-x-gbclan "
    "en-gb-x-gbcwmd en-029"
).split()
SPEAKERS = (
    "m1 m2 m3 m4 m5 m6 m7 m8 f1 f2 f3 f4 f5 klatt klatt2 klatt3 klatt4 klatt5 klatt6 adam Alex "
    "Alicia Andrea Andy Annie antonio aunty belinda benjamin boris caleb david Denis Diogo ed "
    "edward Gene Gene2 grandma grandpa Henrique Hugo iven iven2 iven3 iven4 Jacky john kaukovalta "
    "Lee linda marcelo Marco Mario max Michael michel miguel Mike norbert pablo paul pedro quincy "
    "rob robert sandro shelby steph steph2 steph3 travis victor zac"
).split()
VOICES = {
    "espeak-ng": tuple(f"{accent}+{speaker}" for accent in ACCENTS for speaker in SPEAKERS),
    "flite": ("kal16", "awb", "rms", "slt"),
    "festival": ("kal_diphone", "ked_diphone", "cmu_us_slt_arctic_hts"),
    "pico": ("en-US", "en-GB"),
    "rhvoice": ("alan", "bdl", "clb", "slt"),
}
SILENCE_DB = -40.0
"""Both ends are cut where the level is this far below the loudest 10 ms."""
MARGIN_SECONDS = 0.03
PEAK = 0.5
LONGEST_RUN_SECONDS = 60
ATTEMPTS = 3
PROMPT_SECONDS, SPOKEN_SECONDS, SPELLED_SECONDS = 0.3, 0.085, 0.4
"""Estimated seconds of a prompt without its words, of a letter, and of a spelled letter.

The estimates are generous, since batches are filled by them.
"""


@dataclass(frozen=True)
class Prompt:
    """A sentence to speak; `text` is its transcript.

    If `spelled`, words of one letter are the names of letters, as in "p e t e r".
    """

    text: str
    spelled: bool = True

    def seconds(self, word: str) -> float:
        """The estimated duration of a word; a spelled letter has a longer one."""
        spelled = self.spelled and len(word) == 1
        return SPELLED_SECONDS if spelled else SPOKEN_SECONDS * len(word)


@dataclass(frozen=True)
class Speech:
    """A prompt in one voice; `rate` 1.0 and `pitch` 1.0 are the defaults of the voice.

    `pauses` sets a comma after each spelled letter. festival and flite have a fixed pitch.
    """

    prompt: Prompt
    engine: str
    voice: str
    rate: float = 1.0
    pitch: float = 1.0
    pauses: bool = True

    @property
    def spoken(self) -> str:
        """The text for the synthesizer."""
        if not self.prompt.spelled:
            return self.prompt.text
        return spell_out(self.prompt.text, self.engine, self.pauses)

    @property
    def file_name(self) -> str:
        """A file name by the hash of the speech."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:20] + ".wav"

    def command(self, wav: Path) -> tuple[list[str], str | None]:
        """The program's arguments and its standard input."""
        if self.engine == "espeak-ng":
            speed, pitch = round(165 * self.rate), min(99, round(50 * self.pitch))
            options = ["-v", self.voice, "-s", str(speed), "-p", str(pitch), "-w", str(wav)]
            return ["espeak-ng", *options, self.spoken], None
        if self.engine == "flite":
            stretch = f"duration_stretch={1 / self.rate:.3f}"
            options = ["-voice", self.voice, "--setf", stretch, "-o", str(wav)]
            return ["flite", *options, "-t", self.spoken], None
        if self.engine == "festival":
            stretch = f"(Parameter.set 'Duration_Stretch {1 / self.rate:.3f})"
            options = ["-eval", f"(voice_{self.voice})", "-eval", stretch, "-o", str(wav)]
            return ["text2wave", *options], self.spoken
        if self.engine == "rhvoice":
            options = ["-r", str(round(100 * self.rate)), "-t", str(round(100 * self.pitch))]
            return ["RHVoice-test", "-p", self.voice, *options, "-o", str(wav)], self.spoken
        marked = (
            f'<speed level="{round(100 * self.rate)}"><pitch level="{round(100 * self.pitch)}">'
            f"{self.spoken}</pitch></speed>"
        )
        return ["pico2wave", "-l", self.voice, "-w", str(wav), marked], None


def spell_out(text: str, engine: str, pauses: bool) -> str:
    """Letters of a spelled text for a synthesizer: by name, and never as the article."""
    words = []
    for word in text.split():
        if len(word) > 1:
            words.append(word)
            continue
        name = {"a": "[[eI]]" if engine == "espeak-ng" else "A", "z": "zee"}.get(word, word.upper())
        words.append(name + "," if pauses or word == "a" else name)
    return " ".join(words)


def installed_engines() -> list[str]:
    """The installed synthesizers."""
    return [engine for engine, program in ENGINES.items() if shutil.which(program)]


def cast(prompts: Sequence[Prompt], seed: int, engines: Sequence[str]) -> list[Speech]:
    """Give each prompt a voice, a rate and a pitch, drawn from (seed, place in the list)."""
    if not engines:
        raise OptionError(
            "no speech synthesizer is installed: apt-get install espeak-ng flite festival"
        )
    return [
        draw_voice(prompt, random.Random(f"{seed}-{i}"), engines)
        for i, prompt in enumerate(prompts)
    ]


def draw_voice(prompt: Prompt, rng: random.Random, engines: Sequence[str]) -> Speech:
    """A prompt with a voice, a rate and a pitch."""
    engine = rng.choices(engines, [SHARES[e] for e in engines])[0]
    return Speech(
        prompt,
        engine,
        rng.choice(VOICES[engine]),
        rate=round(rng.uniform(0.8, 1.25), 3),
        pitch=round(rng.uniform(0.6, 1.5), 3),
        pauses=rng.random() < 0.6,
    )


def synthesize(speeches: Sequence[Speech], folder: Path, *, processes: int = 2) -> Path:
    """Write all speech as WAV files in `folder` and return the path of their manifest.

    Existing files are kept, so an interrupted run can be resumed. Silence around the speech is cut
    off and the peak set to half of full scale. Raises PianissimoError if a program fails or returns
    silence.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(processes) as pool:
        seconds = list(pool.map(lambda speech: _speak(speech, folder), speeches))
    manifest = folder / "manifest.jsonl"
    partial = manifest.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as out:
        for speech, duration in zip(speeches, seconds, strict=True):
            row = {
                "audio_filepath": speech.file_name,
                "duration": duration,
                "text": speech.prompt.text,
                "subset": "synthetic",
                "speaker": f"{speech.engine} {speech.voice}",
            }
            out.write(json.dumps(row) + "\n")
    partial.rename(manifest)
    return manifest


def speak(speech: Speech) -> Samples:
    """The samples of a prompt in its voice, silence around it cut off, at half of full scale.

    Raises PianissimoError if the program fails or returns silence.
    """
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch) / "raw.wav"
        command, said = speech.command(raw)
        done = subprocess.run(
            command, input=said, text=True, capture_output=True, timeout=LONGEST_RUN_SECONDS
        )
        if done.returncode or not raw.is_file():
            raise PianissimoError(f"{command} failed: {done.stderr.strip()[-200:]}")
        samples = cut_weak_ends(load_audio(raw), SILENCE_DB, MARGIN_SECONDS)
    if not len(samples):
        raise PianissimoError(f"{command} returned silence; remove this voice or text")
    return samples * np.float32(PEAK / np.abs(samples).max())


@dataclass(frozen=True)
class SpokenSet:
    """Prompts that are spoken during training, in a new voice each time, without files.

    If a synthesizer fails, another voice is drawn. An example is determined by its generator, so
    the batches of `BatchSource` are the same for the same seed.
    """

    prompts: Sequence[Prompt]
    engines: Sequence[str]
    augment: Callable[[Samples, random.Random], Samples] | None = None

    def durations(self) -> list[float]:
        """Seconds of each prompt, estimated from its letters."""
        return [
            PROMPT_SECONDS + sum(map(prompt.seconds, prompt.text.split()))
            for prompt in self.prompts
        ]

    def example(self, item: int, rng: random.Random) -> tuple[Samples, str]:
        """Samples and transcript of one prompt, freshly spoken and augmented."""
        prompt = self.prompts[item]
        for attempt in range(ATTEMPTS):
            try:
                samples = speak(draw_voice(prompt, rng, self.engines))
                break
            except PianissimoError:
                if attempt == ATTEMPTS - 1:
                    raise
        return (samples if self.augment is None else self.augment(samples, rng)), prompt.text


def _speak(speech: Speech, folder: Path) -> float:
    """Write one recording unless it exists; returns its seconds."""
    path = folder / speech.file_name
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            ready = Path(scratch) / "ready.wav"
            samples = speak(speech)
            with wave.open(str(ready), "wb") as out:
                out.setparams((1, 2, SAMPLE_RATE, len(samples), "NONE", "not compressed"))
                out.writeframes(np.rint(samples * 32767).astype("<i2").tobytes())
            ready.rename(path)
    with wave.open(str(path), "rb") as made:
        return made.getnframes() / SAMPLE_RATE


# -- texts -----------------------------------------------------------------------------------------

DIGITS = "zero one two three four five six seven eight nine".split()
TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
MONTHS = (
    "january february march april may june july august september october november december"
).split()
ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth "
    "fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth"
).split()
ORDINALS += [f"twenty {word}" for word in ORDINALS[:9]] + ["thirtieth", "thirty first"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
ORDERS = "yes no go stop start help repeat enter erase rubout".split()


def number_words(number: int) -> str:
    """0 to 9999 in words: 1206 is "one thousand two hundred six"."""
    if not 0 <= number <= 9999:
        raise OptionError(f"number must be 0 to 9999, not {number}")
    for size, name in ((1000, "thousand"), (100, "hundred")):
        if number >= size:
            rest = number_words(number % size) if number % size else ""
            return f"{number_words(number // size)} {name} {rest}".strip()
    if number >= 20:
        return f"{TENS[number // 10 - 2]} {DIGITS[number % 10] if number % 10 else ''}".strip()
    return (DIGITS + TEENS)[number]


def compose_commands(count: int, seed: int, words: Sequence[str]) -> list[Prompt]:
    """Short voice commands: digits, numbers, letters, dates, times, orders.

    `words` (lower case) are spelled. Texts are in lower case without marks, with letters as
    separate words and "oh" for some zeros.
    """
    kinds = {
        _digit: 0.28,
        _order: 0.05,
        _letter: 0.07,
        _digit_string: 0.14,
        _spelling: 0.16,
        _code: 0.12,
        _number: 0.08,
        _date: 0.07,
        _time: 0.03,
    }
    spellable = sorted({w for w in words if re.fullmatch("[a-z]{3,10}", w)})
    rng = random.Random(f"{seed}-commands")
    drawn = rng.choices(list(kinds), list(kinds.values()), k=count)
    return [Prompt(kind(rng, spellable)) for kind in drawn]


def _digit(rng: random.Random, words: Sequence[str]) -> str:
    return rng.choice(DIGITS)


def _order(rng: random.Random, words: Sequence[str]) -> str:
    return rng.choice(ORDERS)


def _letter(rng: random.Random, words: Sequence[str]) -> str:
    return rng.choice(LETTERS)


def _digit_string(rng: random.Random, words: Sequence[str]) -> str:
    zero = rng.choice(("zero", "oh"))
    digits = [rng.choice(DIGITS) for _ in range(rng.choice((2, 3, 4, 5, 5, 7, 10)))]
    return " ".join(zero if digit == "zero" else digit for digit in digits)


def _spelling(rng: random.Random, words: Sequence[str]) -> str:
    if not words or rng.random() < 0.3:
        return " ".join(rng.choices(LETTERS, k=rng.randint(2, 7)))
    return " ".join(rng.choice(words))


def _code(rng: random.Random, words: Sequence[str]) -> str:
    order = rng.choice(("", "enter ", "erase ", "rubout "))
    letters = " ".join(rng.choices(LETTERS, k=rng.randint(2, 5)))
    return f"{order}{letters} {number_words(rng.randrange(100))}"


def _number(rng: random.Random, words: Sequence[str]) -> str:
    order = rng.choice(("", "enter "))
    if rng.random() < 0.4:
        return order + number_words(rng.randrange(100, 10_000))
    return order + " ".join(number_words(rng.randrange(100)) for _ in range(rng.randint(1, 2)))


def _date(rng: random.Random, words: Sequence[str]) -> str:
    month, day, year = rng.choice(MONTHS), rng.randint(1, 31), rng.randint(1, 99)
    said = rng.choice((ORDINALS[day - 1], number_words(day)))
    century = rng.choice(("nineteen ", "nineteen ", "twenty ", ""))
    return f"{month} {said} {century}{number_words(year)}" if rng.random() < 0.8 else month


def _time(rng: random.Random, words: Sequence[str]) -> str:
    hour, minute = rng.randint(1, 12), rng.choice((0, 5, 10, 15, 20, 25, 30, 40, 45, 50, 55))
    if not minute:
        return f"{number_words(hour)} o'clock"
    return f"{number_words(hour)} {'oh ' if minute < 10 else ''}{number_words(minute)}"
