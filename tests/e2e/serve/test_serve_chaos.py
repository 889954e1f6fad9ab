"""Broken connections while a model is swapped and a split changes."""

import asyncio
import shutil
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from cutting import Cutter, check_same, listen, talk
from serving import RATE, serving

from pianissimo.models.checkpoints.model_folder import load_model, save_model
from pianissimo.serve.settings import Settings
from pianissimo.transcript import StreamEvent
from pianissimo.zoo.catalog import ASSETS, EMBEDDED

BOSS = {"authorization": "Bearer boss"}


@pytest.fixture(scope="module")
def other_words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model, but for the words it says."""
    folder = tmp_path_factory.mktemp("models") / "other"
    model, tokenizer = load_model(ASSETS / EMBEDDED)
    assert model.joiner is not None
    with torch.no_grad():
        words = model.config.vocab_size
        for tensor in (model.joiner.out.weight, model.joiner.out.bias):
            tensor[:words] = tensor[:words].roll(7, 0)
    save_model(folder, model, tokenizer)
    return folder


@pytest.mark.parametrize(
    ("seconds", "shortest", "longest"),
    [(8.0, 0.5, 2.0), pytest.param(120.0, 1.0, 5.0, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("linger_seconds", [0.1])
def test_chaos_changes_no_word(
    other_words: Path,
    tmp_path: Path,
    seconds: float,
    shortest: float,
    longest: float,
    linger_seconds: float,
) -> None:
    place = Path(shutil.copytree(ASSETS / EMBEDDED, tmp_path / "a"))
    early = talk(round(seconds / 27)) if seconds > 27 else talk()[: 14 * RATE]
    late = early[: len(early) // 2]

    async def chaos(http: str, port: int) -> None:
        async with httpx.AsyncClient(base_url=http, headers=BOSS, timeout=120) as admin:

            async def order(method: str, path: str, body: object = None) -> None:
                answer = await admin.request(method, f"/admin/{path}", json=body)
                assert answer.status_code == 200, answer.text

            async def uncut(model: str, samples: np.ndarray) -> list:
                # Not faster than it is heard: a server that stops reading misses pings, too.
                events, connections = await listen(port, samples, 0.4 * seconds, model=model)
                assert connections == 1
                return events

            before, after = await asyncio.gather(uncut("a", early), uncut("b", late))
            assert said(before) and said(after) and not said(before).startswith(said(after))
            await order("PUT", "splits/trial", {"weights": {"a": 1, "b": 0}})
            cutter = Cutter(port, 5, shortest, longest)
            async with cutter.running() as cut_port:
                jobs = [
                    asyncio.create_task(listen(cut_port, early, seconds, model=model))
                    for model in ("a", "trial")
                ]
                await asyncio.sleep(0.4 * seconds)
                shutil.copytree(other_words, tmp_path / "new")
                place.rename(tmp_path / "old")
                (tmp_path / "new").rename(place)
                await order("POST", "models/a/swap")
                await order("PUT", "splits/trial", {"weights": {"a": 0, "b": 1}})
                jobs += [
                    asyncio.create_task(listen(cut_port, late, 0.4 * seconds, model=model))
                    for model in ("a", "trial")
                ]
                found = await asyncio.gather(*jobs)
            for (events, connections), whole in zip(
                found, (before, before, after, after), strict=True
            ):
                assert connections > 1
                check_same(events, whole)
            assert cutter.cuts >= seconds / longest
            async with asyncio.timeout(60):
                while (await admin.get("/admin/models")).json()["models"][0]["retired"]:
                    await asyncio.sleep(0.05)
            assert 'outcome="failed"' not in (await admin.get("/metrics")).text

    settings = Settings(
        models=(f"a={place}", f"b={other_words}"),
        device="cpu",
        admin_key="boss",
        linger_seconds=linger_seconds,
    )
    with serving(None, settings) as server:
        asyncio.run(chaos(server.http, server.port))
        server.wait_until_empty()


def said(events: list[StreamEvent]) -> str:
    return " ".join(event.text for event in events if event.text)
