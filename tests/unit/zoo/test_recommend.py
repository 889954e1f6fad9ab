"""One test for each rule by which a model is recommended, on the catalog as it is."""

from dataclasses import replace

import pytest

from pianissimo.errors import ModelNotFoundError
from pianissimo.zoo.catalog import CATALOG, CatalogEntry, find
from pianissimo.zoo.recommend import Wish, real_time_factor, recommend

LAPTOP = Wish(cores=2)


def name(wish: Wish) -> str:
    return recommend(wish).entry.short_name


def test_every_model_has_usable_facts() -> None:
    for entry in CATALOG:
        assert entry.facts.gflop > 0
        fields = {"license", "megabytes", "parameters_millions", "languages"}
        assert set(entry.unverified) <= fields


@pytest.mark.parametrize("language", ["zh", "yue", "de", "ZH", "en-GB"])
def test_it_knows_the_language(language: str) -> None:
    choice = recommend(replace(LAPTOP, language=language))
    assert {language.lower(), language.split("-")[0].lower()} & {*choice.entry.languages}
    assert f"knows {language}" in choice.why
    for other, reason in choice.passed_over.items():
        if reason.startswith("does not know"):
            assert not {language.lower(), language.split("-")[0]} & {*find(other).languages}


def test_a_language_that_no_model_knows_is_said_so() -> None:
    with pytest.raises(ModelNotFoundError, match=r"no model knows the language 'tlh'"):
        recommend(Wish("tlh"))


def test_live_prefers_what_streams_by_itself() -> None:
    live = recommend(replace(LAPTOP, live=True))
    assert live.entry.streams and "live by itself" in live.why
    assert live.passed_over["whisper-tiny"] == "is live only from pause to pause"
    assert not recommend(LAPTOP).entry.streams
    # Where nothing streams by itself, pauses have to do.
    pauses = recommend(replace(LAPTOP, language="yue", live=True))
    assert not pauses.entry.streams and "from pause to pause" in pauses.why


def test_of_two_of_one_size_that_of_fewer_languages_is_chosen() -> None:
    english, many = (
        find(f"nemotron-{name}") for name in ("speech-streaming-en-0.6b", "3.5-asr-streaming-0.6b")
    )
    assert english.parameters_millions < many.parameters_millions
    choice = recommend(Wish("en", live=True, cores=2), [many, english])
    assert choice.entry == english
    assert choice.passed_over[many.short_name] == "is of that size for more languages"


@pytest.mark.parametrize("language", ["de", "ar", "ja-JP", "hi"])
def test_live_words_in_many_languages(language: str) -> None:
    choice = recommend(Wish(language, live=True, cores=2))
    assert choice.entry.short_name == "nemotron-3.5-asr-streaming-0.6b"


def test_quiet_prefers_what_was_made_for_it() -> None:
    quiet = recommend(Wish("zh", quiet=True, cores=64))
    assert quiet.entry.short_name == "GLM-ASR-Nano-2512"
    assert "trained on quiet speech (published)" in quiet.why
    assert quiet.passed_over["whisper-large-v3"] == "is less sure of quiet speech"


def test_speed_bounds_the_choice_on_a_processor() -> None:
    bounded = replace(LAPTOP, language="zh", max_rtf=0.5)
    choice = recommend(bounded)
    assert choice.passed_over["GLM-ASR-Nano-2512"].startswith("has an RTF of about 1.3")
    for entry in CATALOG:
        factor = real_time_factor(entry, bounded)
        assert factor is not None
        if entry.short_name == choice.entry.short_name:
            assert factor <= 0.5
        elif "zh" in entry.languages and factor > 0.5:
            assert choice.passed_over[entry.short_name].startswith("has an RTF of about")
    assert real_time_factor(choice.entry, replace(bounded, cores=4)) == pytest.approx(
        (real_time_factor(choice.entry, bounded) or 0) / 2
    )
    with pytest.raises(
        ModelNotFoundError, match=r"so quick here: whisper-tiny has an RTF of about 0\.012"
    ):
        recommend(replace(bounded, max_rtf=1e-6))


def test_what_cannot_keep_up_is_not_live() -> None:
    live = recommend(Wish("ca", cores=2, live=True))
    assert live.passed_over["GLM-ASR-Nano-2512"] == "has an RTF of about 1.3 (arithmetic)"
    assert name(Wish("ca", cores=2)) == name(Wish("ca", cores=2, live=True, max_rtf=2.0))
    assert name(Wish("ca", cores=2)) == "GLM-ASR-Nano-2512"


def test_a_live_step_is_slower_than_a_recording_of_the_same_model() -> None:
    entry = find("nemotron-speech-streaming-en-0.6b")
    live, whole = (real_time_factor(entry, replace(LAPTOP, live=live)) for live in (True, False))
    assert live is not None and whole is not None and live > 2 * whole


def test_on_a_gpu_speed_is_unknown_and_excludes_nothing() -> None:
    choice = recommend(Wish("zh", device="cuda", max_rtf=1e-6))
    assert choice.entry.short_name == "GLM-ASR-Nano-2512"
    assert "unknown speed on cuda" in choice.why


def test_a_narrow_model_is_the_last_resort() -> None:
    assert name(Wish(cores=1, live=True)) != "embedded-commands"
    only = [find("embedded-commands"), replace(find("whisper-tiny"), name="x/parakeet-ctc-0.6b")]
    assert recommend(Wish(cores=1), only).entry.short_name == "parakeet-ctc-0.6b"
    alone = recommend(Wish(cores=1, max_rtf=0.01))
    assert alone.entry.short_name == "embedded-commands" and "only some words" in alone.why


def test_of_several_the_largest_is_chosen_and_the_others_are_told() -> None:
    choice = recommend(Wish("de", cores=64))
    able: list[CatalogEntry] = [e for e in CATALOG if "de" in e.languages]
    assert choice.entry == max(able, key=lambda entry: entry.parameters_millions)
    assert choice.passed_over["whisper-tiny"] == "is smaller"
    assert choice.passed_over["embedded-commands"] == "does not know de"
    assert choice.why.endswith("; rather than whisper-large-v3, which is smaller")


def test_what_is_preferred_but_too_slow_is_named_first() -> None:
    choice = recommend(Wish("zh", cores=2, quiet=True, max_rtf=0.72))
    assert choice.entry.short_name == "whisper-large-v3-turbo"
    assert "; rather than GLM-ASR-Nano-2512, which has an RTF of about 1.3" in choice.why


def test_it_says_what_to_run_and_what_that_takes() -> None:
    quiet = recommend(Wish("zh", quiet=True, cores=64))
    assert quiet.how == (
        "pianissimo pull GLM-ASR-Nano-2512 && pianissimo transcribe --model GLM-ASR-Nano-2512 FILE"
        "  # 4520 MB, needs pip install 'pianissimo[families]', MIT"
    )
    embedded = recommend(Wish(live=True), [find("embedded-commands")])
    assert embedded.how == "pianissimo listen  # part of the package, Apache-2.0"
    assert "rather than" not in embedded.why
    unverified = recommend(Wish(), [find("whisper-base")])
    assert unverified.how.endswith("Apache-2.0 (unverified)")
