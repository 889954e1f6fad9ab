import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny import DIM, ENCODER, MELS, WHOLE_CONTEXT, cut, make_encoder, tensor
from torch import Tensor

from pianissimo.errors import OptionError
from pianissimo.models import fastconformer
from pianissimo.models.fastconformer import (
    EncoderConfig,
    EncoderState,
    FastConformerEncoder,
    RelativeAttention,
    skew,
)

CONFORMER = dataclasses.replace(
    WHOLE_CONTEXT, subsampling_factor=4, subsampling_channels=DIM, depthwise_subsampling=False
)
SEVENTY, FIFTY_SIX = (13, 6, 1, 0), (0, 3, 6, 13)
MODES = [(70, r) for r in SEVENTY] + [(56, r) for r in FIFTY_SIX]
LENGTHS = [0, 1, 5, 8, 9, 104, 113, 114, 331, 778, 1003]
"""Mel frames: every remainder of 8, less than a chunk, more than the left context."""
VARIANTS = {
    "plain": {},
    "bias": {"attention_bias": True, "conv_bias": True},
    "scaled": {"scale_input": True},
    "folded": {"conv_norm": "folded"},
    "folded with bias": {"conv_norm": "folded", "conv_bias": True},
    "short kernel": {"conv_kernel": 1},
    "factor 4": {"subsampling_factor": 4},
    "no left context": {"left_context": 0, "lookaheads": (0,)},
}


def stream(
    encoder: FastConformerEncoder,
    mel: Tensor,
    lookahead: int,
    sizes: list[int],
    *,
    lengths: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    """(B, T, F) -> (B, S, D), step by step; half of the streams end with an empty step."""
    plan, state = encoder.plan(lookahead), encoder.start(len(mel))
    parts = list(cut(mel.shape[1], sizes, seed))
    if seed % 2 or not parts:
        parts.append(slice(mel.shape[1], mel.shape[1]))
    with torch.no_grad():
        found = [
            encoder.step(mel[:, p], state, plan, lengths=lengths, final=p is parts[-1])
            for p in parts
        ]
    return torch.cat(found, dim=1)


@torch.no_grad()
def offline(encoder: FastConformerEncoder, mel: Tensor, lookahead: int | None = None) -> Tensor:
    found: Tensor = encoder(mel, torch.full((len(mel),), mel.shape[1]), lookahead)[0]
    return found


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def frames_of(encoder: FastConformerEncoder, mel_frames: int) -> int:
    return int(encoder.subsampling.output_length(torch.tensor([mel_frames])))


def encoder_for(left: int, **changes: object) -> FastConformerEncoder:
    lookaheads = SEVENTY if left == 70 else FIFTY_SIX
    settings = {"left_context": left, "lookaheads": lookaheads, **changes}
    return make_encoder(dataclasses.replace(ENCODER, **settings))  # type: ignore[arg-type]


# -- chunked equals whole --------------------------------------------------------------------------


@pytest.mark.parametrize("left, lookahead", MODES)
@pytest.mark.parametrize("frames", LENGTHS[1:])
def test_a_stream_equals_the_whole(left: int, lookahead: int, frames: int) -> None:
    encoder = encoder_for(left)
    mel = tensor(1, frames, MELS, seed=frames)
    whole = offline(encoder, mel, lookahead)
    assert 0.3 < float(whole.std()) < 3
    sizes = [0, 1, 3, 8, 17, 60, 150]
    for seed in (frames, frames + 1):
        found = stream(encoder, mel, lookahead, sizes, seed=seed)
        assert found.shape == whole.shape
        assert_close(found, whole)


@pytest.mark.parametrize("lookahead", SEVENTY)
def test_a_stream_in_regular_chunks_gives_each_chunk_at_once(lookahead: int) -> None:
    """The first chunk is complete with 1 + 8R mel frames, each later one with 8C more."""
    encoder, chunk = encoder_for(70), lookahead + 1
    mel = tensor(1, 1 + 8 * lookahead + 8 * chunk * 7, MELS)
    plan, state = encoder.plan(lookahead), encoder.start()
    with torch.no_grad():
        found = [encoder.step(mel[:, : 1 + 8 * lookahead], state, plan)]
        for part in mel[:, 1 + 8 * lookahead :].split(8 * chunk, dim=1):
            found.append(encoder.step(part[:, :-1], state, plan))
            assert found[-1].shape[1] == 0
            found.append(encoder.step(part[:, -1:], state, plan))
            assert found[-1].shape[1] == chunk
    assert found[0].shape[1] == chunk
    whole = offline(encoder, mel, lookahead)
    assert_close(torch.cat(found, dim=1), whole)


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_streams_as_it_runs_whole(variant: str) -> None:
    encoder = make_encoder(dataclasses.replace(ENCODER, **VARIANTS[variant]))  # type: ignore[arg-type]
    mel = tensor(2, 700, MELS)
    for lookahead in (encoder.config.lookaheads[0], encoder.config.lookaheads[-1]):
        whole = offline(encoder, mel, lookahead)
        found = stream(encoder, mel, lookahead, [0, 5, 40, 130])
        assert_close(found, whole)


def test_the_variants_differ() -> None:
    """Otherwise the test above would prove nothing about them."""
    mel = tensor(1, 200, MELS)
    for name in ("bias", "scaled", "folded", "no left context"):
        config = dataclasses.replace(ENCODER, **VARIANTS[name])  # type: ignore[arg-type]
        whole = offline(make_encoder(config), mel)
        assert not torch.allclose(whole, offline(make_encoder(), mel), atol=1e-2)


def test_a_long_stream_keeps_its_size_and_its_numbers() -> None:
    config = dataclasses.replace(ENCODER, layers=1)
    encoder = make_encoder(config)
    plan, state = encoder.plan(0), encoder.start()
    mel = tensor(1, 8 * 3000, MELS)
    sizes: set[tuple[int, ...]] = set()
    found = []
    with torch.no_grad():
        for i, part in enumerate(mel.split(8, dim=1)):
            found.append(encoder.step(part, state, plan))
            if i > 0:
                sizes.add(state_sizes(state))
    assert len(sizes) == 1
    # One layer sees 70 frames back, the convolutions a few more: what came before is forgotten.
    recent = stream(encoder, mel[:, -8 * 200 :], 0, [8])
    together = torch.cat(found, dim=1)
    assert together.shape[1] == 3000
    assert_close(together[:, -100:], recent[:, 100:200])


def state_sizes(state: EncoderState) -> tuple[int, ...]:
    tensors = [state.key, state.value, state.conv, state.pending, *state.subsampling.caches]
    # What counts is the memory behind a tensor: a slice may keep all of its past alive.
    return tuple(t.untyped_storage().nbytes() for t in tensors)


def test_a_long_push_leaves_no_more_behind_than_short_ones() -> None:
    encoder, mel = encoder_for(70), tensor(1, 2005, MELS)
    plan, long, short = encoder.plan(13), encoder.start(), encoder.start()
    with torch.no_grad():
        encoder.step(mel, long, plan)
        for part in mel.split(20, dim=1):
            encoder.step(part, short, plan)
    assert long.pending.shape[1] == short.pending.shape[1] > 0
    assert state_sizes(long) == state_sizes(short)


@pytest.mark.parametrize("lookahead", SEVENTY)
def test_flushing_a_copy_leaves_the_live_stream_unchanged(lookahead: int) -> None:
    encoder = encoder_for(70)
    mel = tensor(1, 1000, MELS)
    plan, state, untouched = encoder.plan(lookahead), encoder.start(), encoder.start()
    with torch.no_grad():
        for s in (state, untouched):
            encoder.step(mel[:, :437], s, plan)
        flushed = encoder.step(mel[:, :0], copy.deepcopy(state), plan, final=True)
        assert flushed.shape[1] > 0
        after = [encoder.step(mel[:, 437:], s, plan, final=True) for s in (state, untouched)]
    assert torch.equal(after[0], after[1])
    whole = offline(encoder, mel[:, :437], lookahead)
    assert_close(flushed, whole[:, -flushed.shape[1] :])


@pytest.mark.parametrize("lookahead", SEVENTY)
@pytest.mark.parametrize("queries", [1, 64])
def test_sharing_windows_between_short_chunks_changes_nothing(
    lookahead: int, queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = encoder_for(70)
    mel = tensor(2, 1003, MELS)
    lengths = torch.tensor([1003, 555])
    usual = stream(encoder, mel, lookahead, [1003], lengths=lengths)
    monkeypatch.setattr(fastconformer, "QUERIES_PER_WINDOW", queries)
    assert encoder.plan(lookahead).queries == (lookahead + 1) * max(1, queries // (lookahead + 1))
    found = stream(encoder, mel, lookahead, [1003], lengths=lengths)
    assert_close(found[0], usual[0])
    valid = frames_of(encoder, 555)
    assert_close(found[1, :valid], usual[1, :valid])


# -- batched equals alone --------------------------------------------------------------------------


@pytest.mark.parametrize("lookahead", SEVENTY)
def test_rows_of_an_offline_batch_equal_each_alone(lookahead: int) -> None:
    encoder = encoder_for(70, conv_bias=True, attention_bias=True)
    lengths = [1003, 3, 0, 640, 114]
    mel = tensor(len(lengths), 1003, MELS)
    with torch.no_grad():
        found, counts = encoder(mel, torch.tensor(lengths), lookahead)
    assert bool(found.isfinite().all())
    for row, n in enumerate(lengths):
        assert int(counts[row]) == frames_of(encoder, n)
        if n:
            alone = offline(encoder, mel[row : row + 1, :n], lookahead)[0]
            assert_close(found[row, : len(alone)], alone)


@pytest.mark.parametrize("lookahead", SEVENTY)
def test_rows_of_a_streamed_batch_equal_each_alone(lookahead: int) -> None:
    encoder = encoder_for(70, conv_bias=True, attention_bias=True)
    lengths = [901, 3, 0, 640, 114, 897]
    mel = tensor(len(lengths), 901, MELS)
    found = stream(encoder, mel, lookahead, [0, 7, 60, 200], lengths=torch.tensor(lengths))
    assert bool(found.isfinite().all())
    for row, n in enumerate(lengths):
        if n:
            alone = offline(encoder, mel[row : row + 1, :n], lookahead)[0]
            assert_close(found[row, : len(alone)], alone)


def test_what_stands_in_the_padding_does_not_matter() -> None:
    encoder = encoder_for(70)
    mel, lengths = tensor(2, 400, MELS), torch.tensor([400, 150])
    other = mel.clone()
    other[1, 150:] = 1e3
    valid = frames_of(encoder, 150)
    with torch.no_grad():
        first, second = (encoder(m, lengths, 6)[0] for m in (mel, other))
    assert torch.equal(first[1, :valid], second[1, :valid])
    first, second = (stream(encoder, m, 6, [90], lengths=lengths) for m in (mel, other))
    assert torch.equal(first[1, :valid], second[1, :valid])


def test_a_new_state_does_not_depend_on_an_old_one() -> None:
    encoder, mel = encoder_for(70), tensor(1, 300, MELS)
    first = stream(encoder, mel, 1, [33])
    stream(encoder, 10 * tensor(1, 300, MELS, seed=1), 1, [50])
    assert torch.equal(stream(encoder, mel, 1, [33]), first)


# -- unlimited context -----------------------------------------------------------------------------


def test_unlimited_context_batched_equals_alone() -> None:
    encoder = make_encoder(WHOLE_CONTEXT)
    lengths = [500, 77, 4, 0, 499]
    mel = tensor(len(lengths), 500, MELS)
    with torch.no_grad():
        found, counts = encoder(mel, torch.tensor(lengths))
    for row, n in enumerate(lengths):
        if n:
            alone = offline(encoder, mel[row : row + 1, :n])[0]
            assert len(alone) == int(counts[row])
            assert_close(found[row, : len(alone)], alone)


def test_unlimited_context_sees_everything() -> None:
    encoder = make_encoder(WHOLE_CONTEXT)
    mel = tensor(1, 2000, MELS)
    other = mel.clone()
    other[:, -8:] += 1
    assert bool((offline(encoder, mel)[:, 0] != offline(encoder, other)[:, 0]).any())


@pytest.mark.parametrize("config", [WHOLE_CONTEXT, CONFORMER, ENCODER])
def test_queries_in_blocks_equal_one_block(
    config: EncoderConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = make_encoder(config)
    mel, lengths = tensor(2, 601, MELS), torch.tensor([601, 350])
    with torch.no_grad():
        whole, _ = encoder(mel, lengths)
        monkeypatch.setattr(fastconformer, "ATTENTION_CELLS", 7 * 2 * 2 * whole.shape[1])
        blocks, _ = encoder(mel, lengths)
        monkeypatch.setattr(fastconformer, "ATTENTION_CELLS", 1)
        singles, _ = encoder(mel, lengths)
    assert_close(blocks, whole)
    assert_close(singles, whole)


@pytest.mark.parametrize("config", [WHOLE_CONTEXT, CONFORMER, ENCODER])
def test_work_in_blocks_equals_work_at_once(
    config: EncoderConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = make_encoder(config)
    mel, lengths = tensor(2, 601, MELS), torch.tensor([601, 350])
    with torch.no_grad():
        whole, _ = encoder(mel, lengths)
        for frames, rows in ((100, 1), (7, 10), (600, 75)):
            monkeypatch.setattr(fastconformer, "FRAMES_PER_BLOCK", frames)
            monkeypatch.setattr(fastconformer, "ROWS_PER_BLOCK", rows)
            blocks, _ = encoder(mel, lengths)
            assert_close(blocks, whole)


@pytest.mark.parametrize("config", [WHOLE_CONTEXT, CONFORMER, ENCODER])
def test_an_utterance_without_a_frame_gives_none(config: EncoderConfig) -> None:
    encoder = make_encoder(config)
    with torch.no_grad():
        found, counts = encoder(torch.zeros(2, 0, MELS), torch.tensor([0, 0]))
    assert found.shape == (2, 0, DIM)
    assert counts.tolist() == [0, 0]


# -- attention -------------------------------------------------------------------------------------


def first_attention(encoder: FastConformerEncoder) -> RelativeAttention:
    return next(iter(encoder.layers)).attention


def sinusoid(distance: int) -> list[float]:
    """Even entries sine, odd ones cosine, of the distance at falling rates."""
    rates = [10_000 ** (-2 * m / DIM) for m in range(DIM // 2)]
    return [f(distance * rate) for rate in rates for f in (math.sin, math.cos)]


def test_relative_keys_are_projected_sinusoids_from_far_to_near() -> None:
    encoder = encoder_for(70)
    plan = encoder.plan(13)
    distances = range(70 + 13, -14, -1)
    table = torch.tensor([sinusoid(d) for d in distances])
    for layer, relative in zip(encoder.layers, plan.relative, strict=True):
        expected = (table @ layer.attention.position.weight.T).view(-1, 2, DIM // 2)
        torch.testing.assert_close(relative, expected.permute(1, 2, 0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("Q, W", [(1, 1), (4, 4), (3, 9), (1, 7)])
def test_attention_follows_its_formula(Q: int, W: int, bias: bool) -> None:
    config = dataclasses.replace(ENCODER, attention_bias=bias)
    attention = first_attention(make_encoder(config))
    x, mask = tensor(1, W, DIM), tensor(Q, W, seed=1) > -0.5
    mask[0] = False
    with torch.no_grad():
        parts = attention.qkv(x).unflatten(-1, (3, attention.heads, attention.head_dim))
        q, k, v = (part.transpose(1, 2)[:, :, None] for part in parts.unbind(2))
        table = torch.tensor([sinusoid(d) for d in range(W - 1, -Q, -1)])
        relative = attention.relative_keys(table)
        for seen in (None, mask):
            shaped = None if seen is None else seen[None, None, None]
            heads = attention.attend(q[..., W - Q :, :], k, v, relative, shaped)
            found = attention.out(heads)[0].double().numpy()
            expected = naive_attention(attention, x[0], Q, seen)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def naive_attention(
    attention: RelativeAttention, x: Tensor, Q: int, mask: Tensor | None
) -> NDArray[np.float64]:
    """The last Q frames of (W, D) attend to all W, one score at a time in float64."""
    weights = {n: p.detach().double().numpy() for n, p in attention.named_parameters()}
    project = weights["qkv.weight"] @ x.double().numpy().T
    if "qkv.bias" in weights:
        project = project + weights["qkv.bias"][:, None]
    query, key, value = project[:DIM], project[DIM : 2 * DIM], project[2 * DIM :]
    W, K = len(x), attention.head_dim
    out: NDArray[np.float64] = np.zeros((Q, DIM))
    for h in range(attention.heads):
        rows = slice(h * K, (h + 1) * K)
        u, w = weights["bias_u"][h], weights["bias_v"][h]
        for i in range(Q):
            at = W - Q + i
            scores = np.zeros(W)
            for j in range(W):
                p = weights["position.weight"][rows] @ np.array(sinusoid(at - j))
                content = (query[rows, at] + u) @ key[rows, j]
                scores[j] = (content + (query[rows, at] + w) @ p) / math.sqrt(K)
                if mask is not None and not mask[i, j]:
                    scores[j] = -10_000
            chances = np.exp(scores - scores.max())
            chances /= chances.sum()
            if mask is not None:
                chances[~mask[i].numpy()] = 0
            out[i, rows] = sum(chances[j] * value[rows, j] for j in range(W))
    out = out @ weights["out.weight"].T
    if "out.bias" in weights:
        out += weights["out.bias"]
    return out


def test_a_query_that_may_see_nothing_gets_zeros() -> None:
    attention = first_attention(encoder_for(70))
    q, k, v = (100 * tensor(2, 2, 1, 5, DIM // 2, seed=s) for s in range(3))
    nothing = torch.zeros(1, 1, 1, 5, 5, dtype=torch.bool)
    found = attention.attend(q, k, v, tensor(2, DIM // 2, 9), nothing)
    assert torch.equal(found, torch.zeros_like(found))


@pytest.mark.parametrize("Q, W", [(1, 1), (1, 5), (2, 2), (4, 9), (14, 84)])
def test_skew_gathers_by_distance(Q: int, W: int) -> None:
    scores = tensor(2, 3, Q, Q + W - 1)
    found = skew(scores, W)
    assert found.shape == (2, 3, Q, W)
    for q in range(Q):
        for w in range(W):
            assert torch.equal(found[..., q, w], scores[..., q, Q - 1 - q + w])


# -- what a frame can see --------------------------------------------------------------------------


def test_subsampled_frames_never_read_later_mel() -> None:
    encoder, mel = encoder_for(70), tensor(1, 97, MELS)
    lengths = torch.tensor([97])
    with torch.no_grad():
        before, _ = encoder.subsampling(mel, lengths)
        for s in range(before.shape[1] - 1):
            for change_at, reads in ((8 * s, True), (8 * s + 1, False)):
                other = mel.clone()
                other[:, change_at:] += 1
                after, _ = encoder.subsampling(other, lengths)
                assert torch.equal(after[:, :s], before[:, :s])
                assert torch.equal(after[:, s], before[:, s]) is not reads


@pytest.mark.parametrize("lookahead", SEVENTY)
def test_outputs_do_not_depend_on_mel_after_their_chunk(lookahead: int) -> None:
    encoder, chunk = encoder_for(70), lookahead + 1
    mel = tensor(1, 8 * chunk * 5, MELS)
    before = offline(encoder, mel, lookahead)
    last = 3 * chunk - 1  # the last frame of the third chunk
    for change_at, reads in ((8 * last, True), (8 * last + 1, False)):
        other = mel.clone()
        other[:, change_at:] += 1
        after = offline(encoder, other, lookahead)
        assert torch.equal(after[:, : 2 * chunk], before[:, : 2 * chunk])
        same = torch.equal(after[:, 2 * chunk : 3 * chunk], before[:, 2 * chunk : 3 * chunk])
        assert same is not reads


@pytest.mark.parametrize("lookahead", SEVENTY)
def test_a_layer_sees_no_further_back_than_the_left_context(lookahead: int) -> None:
    config = dataclasses.replace(ENCODER, layers=1)
    encoder, chunk = make_encoder(config), lookahead + 1
    mel = tensor(1, 8 * 150, MELS)
    before = offline(encoder, mel, lookahead)
    other = mel.clone()
    other[:, 33] += 1  # read by encoder frame 5 and by no other
    changed = (offline(encoder, other, lookahead) != before).any(-1)[0].nonzero()[:, 0]
    reach = (5 // chunk + 70 // chunk + 1) * chunk  # the first frame of the first blind chunk
    assert int(changed.min()) == 5 // chunk * chunk
    # The convolution after the attention carries what it saw 8 frames further.
    assert int(changed.max()) == reach - 1 + 8


# -- lengths and refusals --------------------------------------------------------------------------


@pytest.mark.parametrize("config", [ENCODER, WHOLE_CONTEXT])
def test_the_output_length_is_what_comes_out(config: EncoderConfig) -> None:
    encoder = make_encoder(config)
    for frames in range(61):
        with torch.no_grad():
            mel = tensor(1, frames, MELS)
            found, counts = encoder.subsampling(mel, torch.tensor([frames]))
        n = frames
        for _ in range(3 if frames else 0):
            # Two zeros before and one after the frames, or one on each side.
            n = n // 2 + 1 if config.causal_subsampling else (n + 1) // 2
        assert found.shape == (1, n, DIM)
        assert counts.tolist() == [n]
        assert frames_of(encoder, frames) == n


def test_lookaheads_the_model_does_not_have_are_refused() -> None:
    encoder, mel = encoder_for(70), tensor(1, 20, MELS)
    with pytest.raises(OptionError, match=r"lookahead 3 .*13, 6, 1, 0"):
        encoder.plan(3)
    with pytest.raises(OptionError, match="lookahead 3"):
        encoder(mel, torch.tensor([20]), 3)
    with pytest.raises(OptionError, match="whole utterances"):
        make_encoder(WHOLE_CONTEXT)(mel, torch.tensor([20]), 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"left_context": None, "lookaheads": ()},
        {"causal_conv": False},
        {"causal_subsampling": False},
    ],
)
def test_an_encoder_that_is_not_causal_has_no_plan(changes: dict[str, object]) -> None:
    config = dataclasses.replace(ENCODER, **changes)  # type: ignore[arg-type]
    assert not config.streams
    with pytest.raises(OptionError, match="cannot stream"):
        make_encoder(config).plan(0)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"left_context": 70, "lookaheads": (13, 3)}, "not a multiple of the chunk of 4"),
        ({"left_context": None}, "together"),
        ({"lookaheads": ()}, "together"),
        ({"heads": 3}, "not divisible by 3"),
        ({"subsampling_factor": 6}, "power of two"),
        ({"subsampling_factor": 1}, "power of two"),
    ],
)
def test_shapes_that_make_no_sense_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        dataclasses.replace(ENCODER, **changes)  # type: ignore[arg-type]
