"""The models of a server: names, leases, and versions that close with their last lease."""

import asyncio
import gc
import shutil
import weakref
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import WHOLE_CONTEXT, make_model, noise

from pianissimo.audio.gain import GainMode
from pianissimo.errors import EngineError, ModelError, ModelNotFoundError, OptionError
from pianissimo.models.checkpoints.model_folder import load_model, save_model
from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.serve.errors import Refusal
from pianissimo.serve.settings import Settings
from pianissimo.serve.versions.experiments import Caller, Experiment
from pianissimo.serve.versions.store import ModelChoice, ServedModel, ShadowRule, Store, read_all
from pianissimo.text.tokenizer import Tokenizer

ANYONE = Caller("s")
Test = Callable[[Store, Path], Coroutine[Any, Any, None]]


def other_words(source: Path, target: Path) -> None:
    """The same model, but for the words it says."""
    model, tokenizer = load_model(source)
    assert model.joiner is not None
    with torch.no_grad():
        words = model.config.vocab_size
        for tensor in (model.joiner.out.weight, model.joiner.out.bias):
            tensor[:words] = tensor[:words].roll(7, 0)
    save_model(target, model, tokenizer)


@pytest.fixture
def folder(tiny_model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "model"))


def run(folder: Path, test: Test, *models: str, spare: tuple[str, ...] = ()) -> None:
    async def main() -> None:
        given = models or (f"one={folder}",)
        settings = Settings(models=given, spare_models=spare, device="cpu", max_streams=4)
        store = Store(settings, read_all(settings), 4)
        try:
            await test(store, folder)
        finally:
            await store.close()

    asyncio.run(main())


def said(model: ServedModel, sound: np.ndarray) -> str:
    with model.open(sample_rate=16_000, endpoint=None) as session:
        session.push(sound)
        session.finish()
        return " ".join(event.text for event in session if event.type == "final")


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            gc.collect()
            await asyncio.sleep(0.02)


def test_names(folder: Path) -> None:
    async def test(store: Store, folder: Path) -> None:
        def chosen(name: str | None, **options: Any) -> str:
            return store.choose(name, ANYONE, **options).name

        assert [*store.names] == ["one", "Two"] and store.unloaded == ("three",)
        for name in (None, "", "whisper-1", "gpt-4o-transcribe", "PIANISSIMO", "ONE"):
            assert chosen(name) == "one"
        assert chosen("two") == "Two" and chosen("nova-3", lenient=True) == "one"
        for unknown in ("tiny", "three", "nova-3", str(folder), "../model"):
            with pytest.raises(ModelNotFoundError):
                store.choose(unknown, ANYONE)
        store.set_experiment("half", Experiment({"one": 0, "Two": 1}))
        assert store.choose("Half", ANYONE) == ModelChoice("Two", "half") and chosen(None) == "one"
        store.set_experiment("pianissimo", Experiment({"one": 0, "Two": 1}))
        assert chosen(None) == chosen("whisper-1") == "Two" and chosen("one") == "one"
        assert chosen("nova-3", lenient=True) == "Two"

    run(folder, test, f"one={folder}", f"Two={folder}", spare=(f"three={folder}",))


def test_two_models_of_one_name_are_refused(folder: Path) -> None:
    for settings in (
        Settings(models=(str(folder), str(folder)), device="cpu"),
        Settings(models=(f"a={folder}", f"a={folder}"), device="cpu"),
    ):
        with pytest.raises(OptionError, match="NAME=MODEL"):
            read_all(settings)
    settings = Settings(models=(str(folder),), spare_models=(f"tiny={folder}",), device="cpu")
    with pytest.raises(OptionError, match="NAME=MODEL"):
        Store(settings, read_all(settings), 1)
    with pytest.raises(OptionError, match="name"):
        Settings(spare_models=(str(folder),))


def test_old_streams_keep_the_old_weights_which_then_go(folder: Path, tmp_path: Path) -> None:
    sound = noise(40_000)
    gone: list[ServedModel] = []

    async def test(store: Store, folder: Path) -> None:
        store.on_retired = gone.append
        lease = store.lease(ModelChoice("one"))
        before = said(lease.model, sound)
        stream = lease.model.open(sample_rate=16_000, endpoint=None)
        stream.push(sound[:20_000])
        weights = weakref.ref(lease.model.recognizer.model)  # type: ignore[union-attr]

        other_words(folder, tmp_path / "new")
        shutil.rmtree(folder)
        (tmp_path / "new").rename(folder)
        after = await store.swap("one")
        assert after.version == 2 and store.models["one"] is after
        assert said(after, sound) != before != ""
        with store.lease(ModelChoice("one")) as new:
            assert new.model is after

        lease.release()  # the stream alone holds it
        stream.push(sound[20_000:])
        stream.finish()
        assert [model.version for model in store.retired] == [1]
        text = [event.text for event in stream if event.type == "final"]
        assert text == [before]
        await until(lambda: not store.retired)
        assert [model.version for model in gone] == [1]
        del lease, stream
        gone.clear()
        await until(lambda: weights() is None)

    run(folder, test)


def test_a_lease_alone_keeps_a_model(folder: Path) -> None:
    async def test(store: Store, folder: Path) -> None:
        lease = store.lease(ModelChoice("one"))
        await store.swap("one")
        await asyncio.sleep(0.3)
        assert store.retired == [lease.model] and lease.model.alive
        lease.release()
        lease.release()
        await until(lambda: not store.retired)
        assert not lease.model.alive and lease.model.leases == 0

    run(folder, test)


def test_what_does_not_work_replaces_nothing(folder: Path) -> None:
    async def test(store: Store, folder: Path) -> None:
        before = store.models["one"]
        weights, damaged = folder / "model.safetensors", folder / "damaged"
        damaged.write_bytes(weights.read_bytes()[:5000])
        damaged.rename(weights)
        with pytest.raises(ModelError):
            await store.swap("one")
        weights.unlink()
        with pytest.raises(ModelError):
            await store.swap("one")
        assert store.models["one"] is before and before.alive and not store.retired
        with pytest.raises(ModelNotFoundError):
            await store.swap(str(folder))
        with pytest.raises(ModelNotFoundError):
            await store.load("../model")

    run(folder, test)


def test_load_and_unload(folder: Path) -> None:
    async def test(store: Store, folder: Path) -> None:
        def refused(code: str, change: Callable[[], object]) -> None:
            with pytest.raises(Refusal) as caught:
                change()
            assert (caught.value.status, caught.value.code) == (409, code)

        with pytest.raises(Refusal, match="load it"):
            await store.swap("two")
        refused("model_not_loaded", lambda: store.set_shadow(ShadowRule("two")))
        refused("model_not_loaded", lambda: store.set_experiment("x", Experiment({"two": 1})))
        await store.load("two")
        with pytest.raises(Refusal, match="swap"):
            await store.load("two")
        refused("name_in_use", lambda: store.set_experiment("one", Experiment({"two": 1})))
        refused("model_in_use", lambda: store.unload("one"))
        store.set_experiment("x", Experiment({"two": 1}))
        refused("model_in_use", lambda: store.unload("two"))
        del store.experiments["x"]
        store.set_shadow(ShadowRule("two"))
        refused("model_in_use", lambda: store.unload("two"))
        store.set_shadow(None)
        choice = store.choose("two", ANYONE)
        store.unload("two")
        with pytest.raises(ModelNotFoundError):
            store.lease(choice)
        await until(lambda: not store.retired)
        assert (await store.load("two")).version == 2

    run(folder, test, spare=(f"two={folder}",))


def test_a_shadow_hears_its_share(folder: Path) -> None:
    async def test(store: Store, folder: Path) -> None:
        store.set_shadow(ShadowRule("two", "one", 0.25))

        def heard(name: str) -> float:
            leases = [store.lease(ModelChoice(name), f"session {i}") for i in range(400)]
            return sum(lease.shadow is store.models["two"] for lease in leases) / len(leases)

        assert 0.15 < heard("one") < 0.35 and heard("two") == heard("three") == 0

    run(folder, test, *(f"{name}={folder}" for name in ("one", "two", "three")))


def test_an_engine_that_died_is_noticed(folder: Path) -> None:
    async def test(store: Store, folder: Path) -> None:
        assert store.fault() is None

        def broken(*arguments: object) -> None:
            raise SystemExit("the device is gone")

        engine = store.models["one"].engine
        assert engine is not None
        engine.runner.step = broken  # type: ignore[method-assign]
        with suppress(EngineError):  # its first step, of which it dies, may come before the push
            store.models["one"].open().push(noise(16_000))
        await until(lambda: not engine.alive)
        assert "one" in (store.fault() or "")
        await store.swap("one")
        assert store.fault() is None

    run(folder, test)


@pytest.mark.parametrize("gain", ["on", "off"])
def test_every_model_is_read_with_the_gain_of_the_settings(folder: Path, gain: GainMode) -> None:
    settings = Settings(models=(f"one={folder}",), device="cpu", gain=gain)
    assert [each.front_end.mode for each in read_all(settings).values()] == [gain]


def test_a_model_that_hears_recordings_whole_is_live_without_latencies(
    tiny_tokenizer: Tokenizer,
) -> None:
    network = make_model(encoder=WHOLE_CONTEXT, vocab_size=tiny_tokenizer.vocab_size)
    model = ServedModel("whole", 1, NativeRecognizer(network, tiny_tokenizer), 2)
    model.try_out()
    assert model.alive and model.latencies_ms == () and model.latency(None) is None
    with pytest.raises(OptionError, match="no latency modes"):
        model.open(latency_ms=160)
    with model.open(sample_rate=16_000) as session:
        assert model.in_use
        session.push(noise(16_000))
        session.finish()
        assert [event.reason for event in session if event.type == "final"][-1] == "finish"
    model.close()
    assert not model.alive and not model.in_use
