"""Two processes that train together against one that does the work of both."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tones import sentences, write_clips

from pianissimo.errors import OptionError
from pianissimo.models.asr import AsrConfig, AsrModel
from pianissimo.models.checkpoints.model_folder import load_model, save_model
from pianissimo.text.tokenizer import Tokenizer
from pianissimo.train.checkpoint import TrainingProgress
from pianissimo.train.config import TrainConfig
from pianissimo.train.data import (
    AudioCache,
    TrainingClip,
    TrainingSet,
    epoch_batches,
    read_manifest,
)
from pianissimo.train.loop import (
    Stage,
    epoch_loader,
    train,
)
from pianissimo.train.parallel import ALONE, World, joined_world, local_device

CONFIG = TrainConfig(
    steps=6,
    peak_lr=1e-3,
    warmup_steps=2,
    ema_decay=0.5,
    clip_norm=1e9,
    save_every=2,
    report_every=1,
    workers=0,
)
SCRIPT = """
import json, sys, time
from pathlib import Path
import torch
from pianissimo.models.checkpoints.model_folder import load_model
from pianissimo.train import loop
from pianissimo.train.parallel import joined_world
sys.path.insert(0, {here!r})
from test_parallel import CONFIG, stages_of

folder = Path({folder!r})
with joined_world("cpu") as world:
    if world.first:
        time.sleep(0.5)
        (folder / "ready").touch()
    world.wait()
    assert (folder / "ready").exists(), "it did not wait"
    torch.manual_seed(0)
    model, tokenizer = load_model(folder / "start")
    stages, seen = stages_of(folder), []
    original = loop.Gradients.fill

    def fill(self, group, lookahead, step):
        parts = original(self, group, lookahead, step)
        seen.append([float(batch.features.double().sum()) for batch in group])
        if step == 0:
            grads = {{n: p.grad.clone() for n, p in model.named_parameters()}}
            torch.save(grads, folder / f"gradients-{{world.rank}}.pt")
        return parts

    loop.Gradients.fill = fill
    validated = []

    def validate(model):
        validated.append(world.rank)
        return {{"wer": 1.0}}

    import dataclasses
    config = dataclasses.replace(CONFIG, validate_every=2, patience=9)
    done, stop = loop.train_model(
        config, model, tokenizer, stages, folder / "run", validate=validate,
        execution=loop.Execution(world=world),
    )
    facts = dict(done=done, seen=seen, validated=validated, size=world.size)
    (folder / f"facts-{{world.rank}}.json").write_text(json.dumps(facts))
    state = {{n: p.detach() for n, p in model.named_parameters()}}
    torch.save(state, folder / f"weights-{{world.rank}}.pt")
"""


def stages_of(folder: Path) -> list[Stage]:
    utterances = read_manifest(folder / "train.jsonl")
    clips = [TrainingClip(i, 0.0, u.duration, u.text) for i, u in enumerate(utterances)]
    return [Stage(CONFIG.steps, TrainingSet(AudioCache(utterances, folder / "cache"), clips), 3.0)]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def pair(
    tmp_path_factory: pytest.TempPathFactory, tone_model: AsrConfig, tiny_tokenizer: Tokenizer
) -> Path:
    """What two processes leave behind that train on the tones."""
    folder = tmp_path_factory.mktemp("pair")
    write_clips(folder, "train", list(sentences(17)))
    torch.manual_seed(3)
    save_model(folder / "start", AsrModel(tone_model), tiny_tokenizer)
    stages_of(folder)  # decodes
    script = folder / "run.py"
    script.write_text(SCRIPT.format(here=str(Path(__file__).parent), folder=str(folder)))
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    tests = os.pathsep.join(str(Path(__file__).parents[n]) for n in (1, 2))
    environment = {**os.environ, **world, "OMP_NUM_THREADS": "1", "PYTHONPATH": tests}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank, process in enumerate(processes):
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
        (folder / f"said-{rank}.txt").write_text(said)
    return folder


def facts(pair: Path) -> list[dict]:
    return [json.loads((pair / f"facts-{rank}.json").read_text()) for rank in range(2)]


def test_gradients_are_those_of_one_process_on_both_batches(
    pair: Path, tiny_tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pianissimo.train import loop

    model, _ = load_model(pair / "start")
    original, found = loop.Gradients.fill, []

    def fill(self, group, lookahead, step):  # type: ignore[no-untyped-def]
        parts = original(self, group, lookahead, step)
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        return parts

    monkeypatch.setattr(loop.Gradients, "fill", fill)
    config = dataclasses.replace(CONFIG, accumulate=2)
    loop.train_model(config, model, tiny_tokenizer, stages_of(pair), tmp_path)
    for rank in range(2):
        gradients = torch.load(pair / f"gradients-{rank}.pt", weights_only=True)
        assert gradients.keys() == found[0].keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, found[0][name], rtol=1e-4, atol=1e-6)


def test_processes_end_with_the_same_weights(pair: Path) -> None:
    average = load_file(pair / "run" / "checkpoint" / "average.safetensors")
    second = torch.load(pair / "weights-1.pt", weights_only=True)
    for name, tensor in average.items():
        torch.testing.assert_close(second[name], tensor)


def test_no_two_processes_train_on_the_same_batch(pair: Path) -> None:
    first, second = (one["seen"] for one in facts(pair))
    assert len(first) == len(second) == CONFIG.steps
    (stage,) = stages_of(pair)
    data = stage.data
    per_epoch = len(epoch_batches(data.durations(), 3.0, CONFIG.seed, 0)) // 2
    assert per_epoch > 1
    batches = [one for groups in (first, second) for group in groups[:per_epoch] for one in group]
    assert len(batches) == 2 * per_epoch
    assert len(set(batches)) == len(batches)


def test_only_the_first_process_writes_logs_and_validates(pair: Path) -> None:
    first, second = facts(pair)
    assert (first["size"], first["done"], second["done"]) == (2, True, True)
    assert first["validated"] == [0] * 4  # before the first step and after every second
    assert second["validated"] == []
    assert "step 6" in (pair / "said-0.txt").read_text()
    assert "step" not in (pair / "said-1.txt").read_text()
    logged = [json.loads(line) for line in (pair / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in logged if "loss" in row] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("batches", [0, 3, 12, 13])
def test_every_process_gets_the_same_number_of_batches_and_none_is_shared(
    batches: int, size: int
) -> None:
    parts = [list(World(rank, size).share(batches)) for rank in range(size)]
    assert len({len(part) for part in parts}) == 1
    together = sorted(i for part in parts for i in part)
    assert together == list(range(batches // size * size))


def test_fewer_batches_than_processes_are_refused(
    pair: Path, tiny_tokenizer: Tokenizer, tone_model: AsrConfig
) -> None:
    stage = dataclasses.replace(stages_of(pair)[0], batch_seconds=1e3)
    many = World(1, 2)
    with pytest.raises(OptionError, match="too few"):
        epoch_loader(
            CONFIG, AsrModel(tone_model), tiny_tokenizer, stage, TrainingProgress(), "cpu", many
        )


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined_world("cpu") as world:
        assert world is ALONE
        assert world.sums(1.0, 2.5) == [1.0, 2.5]
        assert world.agree(True) and not world.agree(False)


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert local_device("cuda") == "cuda:3"
    assert local_device("cpu") == "cpu"
    assert local_device("cuda:1") == "cuda:1"


def test_a_pair_resumes(pair: Path, tiny_tokenizer: Tokenizer, tone_model: AsrConfig) -> None:
    """Its checkpoint is one that a single process can go on from, too."""
    copy = pair / "again"
    (copy / "checkpoint").parent.mkdir()
    (pair / "run" / "checkpoint").rename(copy / "checkpoint")
    _, done = train(CONFIG, tone_model, tiny_tokenizer, stages_of(pair), copy)
    assert done
