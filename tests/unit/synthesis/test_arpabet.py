"""English text to ARPAbet."""

import gzip
import json
from pathlib import Path

import pytest

from pianissimo.errors import TextError
from pianissimo.synthesis.arpabet import (
    CONSONANTS,
    PUNCTUATION,
    VOWELS,
    EnglishPhonemes,
    to_arpabet,
)

hibari = pytest.importorskip("hibari", reason="needs the extra tts")
ARPABET = (
    "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V "
    "W Y Z ZH".split()
)
VOCABULARY = [
    *(s + digit for s in ARPABET for digit in ("0", "1", "2") if s in VOWELS.values()),
    *(s for s in ARPABET if s not in VOWELS.values()),
    *", . ? ! ...".split(),
    "<sos/eos>",
]


@pytest.fixture(scope="module")
def phonemes() -> EnglishPhonemes:
    return EnglishPhonemes(VOCABULARY)


@pytest.mark.parametrize(
    ("text", "symbols"),
    [
        ("Hello, world!", "HH AH0 L OW1 , W ER1 L D !"),
        ("The judge chose three.", "DH AH0 JH AH1 JH CH OW1 Z TH R IY1 ."),
        ("Seven", "S EH1 V AH0 N"),
        ("better water", "B EH1 T ER0 W AO1 T ER0"),
        ("9 boys?", "N AY1 N B OY1 Z ?"),
        ("say {HH AH0 L OW1}", "S EY1 HH AH0 L OW1"),
        ("你", ""),
    ],
)
def test_words_become_phonemes_of_cmudict(
    phonemes: EnglishPhonemes, text: str, symbols: str
) -> None:
    assert phonemes.read(text) == symbols.split()


def test_the_tables_cover_what_american_words_are_read_as() -> None:
    assert set(VOWELS.values()) | set(CONSONANTS.values()) == set(ARPABET)
    path = Path(hibari.__file__).parent / "assets" / "lexicon_us_gold.json.gz"
    lexicon = json.loads(gzip.decompress(path.read_bytes()))
    read = [value for value in lexicon.values() if isinstance(value, str)][:20_000]
    known = {*VOWELS, *CONSONANTS, *PUNCTUATION, "ˈ", "ˌ", " ", "-", "ː"}
    unknown = {letter for value in read for letter in value} - known
    assert len(read) == 20_000
    assert unknown <= {"̃", "x"}, json.dumps(sorted(unknown))


def test_an_unknown_given_phoneme_is_named(phonemes: EnglishPhonemes) -> None:
    with pytest.raises(TextError, match="'QQ1'"):
        phonemes.read("say {HH QQ1}")


def test_stress_belongs_to_the_next_vowel_only() -> None:
    assert list(to_arpabet("ˈstɑɹ əɡˌO")) == [*"S T AA1 R".split(), " ", "AH0", "G", "OW2"]
