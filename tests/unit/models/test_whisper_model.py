"""Whisper's network: the three laws of its chunked encoder, and its decoder with caches."""

import pytest
import torch
from torch import Tensor

from pianissimo.errors import OptionError
from pianissimo.models.packed import packed
from pianissimo.models.whisper import EncoderState, Whisper, WhisperConfig, chunk_windows

CONFIG = WhisperConfig(
    n_mels=8,
    dim=16,
    ff_dim=24,
    encoder_heads=2,
    decoder_heads=4,
    encoder_layers=2,
    decoder_layers=2,
    vocab_size=40,
    audio_positions=150,
    text_positions=20,
)
LEFT = 12


@pytest.fixture(scope="module")
def model() -> Whisper:
    torch.manual_seed(2)
    network = Whisper(CONFIG).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    return network


def mel(batch: int, frames: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, frames, CONFIG.n_mels, generator=torch.Generator().manual_seed(seed))


def stream(model: Whisper, sound: Tensor, chunk: int, state: EncoderState) -> Tensor:
    """All frames of (B, T, F) mel frames, chunk by chunk; `state` is where it begins."""
    padded = torch.cat([sound, torch.zeros(len(sound), 1, CONFIG.n_mels)], dim=1)
    frames = []
    for start in range(0, sound.shape[1], 2 * chunk):
        encoded, state = model.encoder.step(padded[:, start : start + 2 * chunk + 1], state)
        frames.append(encoded)
    return torch.cat(frames, dim=1)


@pytest.mark.parametrize("chunk", [1, 4, 8, 30])
@pytest.mark.parametrize("left", [0, LEFT, 150])
def test_chunks_equal_their_whole(model: Whisper, chunk: int, left: int) -> None:
    sound = mel(2, 120)
    whole = model.encoder.chunked(sound, chunk, left)
    torch.testing.assert_close(
        stream(model, sound, chunk, model.encoder.start(2, left)), whole, atol=1e-5, rtol=1e-4
    )


def test_chunks_are_what_a_mask_says(model: Whisper) -> None:
    """Windows of several chunks against one attention over everything, masked frame by frame."""
    sound, chunk = mel(1, 100), 3
    frame = torch.arange(50)
    begin = frame[:, None] // chunk * chunk
    seen = (frame < begin + chunk) & (frame >= begin - LEFT)
    x = model.encoder.chunked(sound, chunk, LEFT)
    y = model.encoder(sound, seen[None, None])  # one window as wide as all frames
    torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-4)
    N, _, Q, W = chunk_windows(50, chunk, LEFT).shape
    assert N * Q >= 50 and W == LEFT + Q


def test_one_chunk_that_covers_all_is_the_whole(model: Whisper) -> None:
    sound = mel(2, 80)
    whole = model.encoder(sound)
    torch.testing.assert_close(model.encoder.chunked(sound, 40, 0), whole, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        stream(model, sound, 40, model.encoder.start(2, 0)), whole, atol=1e-5, rtol=1e-4
    )


def test_the_future_beyond_a_chunk_changes_nothing(model: Whisper) -> None:
    sound = mel(1, 80)
    other = sound.clone()
    other[:, 49:] += 1.0  # the convolutions look one mel frame ahead
    ours, changed = (model.encoder.chunked(each, 8, LEFT) for each in (sound, other))
    torch.testing.assert_close(ours[:, :24], changed[:, :24])
    assert not torch.allclose(ours[:, 24:32], changed[:, 24:32], atol=1e-3)


def test_a_batch_of_streams_at_different_places_equals_each_alone(model: Whisper) -> None:
    first, second = mel(1, 81, 1), mel(1, 81, 2)
    start = model.encoder.start(1, LEFT)
    _, ahead = model.encoder.step(first[:, :17], start)
    both = EncoderState(
        torch.cat([ahead.mel, start.mel]),
        torch.cat([ahead.stem, start.stem]),
        torch.cat([ahead.key, start.key], 1),
        torch.cat([ahead.value, start.value], 1),
        torch.cat([ahead.position, start.position]),
    )
    together, after = model.encoder.step(torch.cat([first[:, 16:33], second[:, :17]]), both)
    one, _ = model.encoder.step(first[:, 16:33], ahead)
    two, last = model.encoder.step(second[:, :17], start)
    torch.testing.assert_close(together, torch.cat([one, two]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(after.key[:, 1:], last.key, atol=1e-5, rtol=1e-4)
    assert after.position.tolist() == [16, 8]


def test_a_reused_state_equals_a_new_one(model: Whisper) -> None:
    """Zeroing every tensor is all that a slot needs; what was cached before is not seen."""
    sound = mel(1, 64)
    used = model.encoder.start(1, LEFT)
    _, used = model.encoder.step(mel(1, 17, seed=5), used)
    used.key += torch.nan  # nothing of it may be read
    for tensor in vars(used).values():
        tensor.zero_()
    again = stream(model, sound, 8, used)
    torch.testing.assert_close(again, stream(model, sound, 8, model.encoder.start(1, LEFT)))


def test_a_state_stays_as_it_was_and_keeps_its_size(model: Whisper) -> None:
    state = model.encoder.start(2, LEFT)
    before = {name: tensor.clone() for name, tensor in vars(state).items()}
    _, after = model.encoder.step(mel(2, 17), state)
    for name, tensor in vars(state).items():
        assert torch.equal(tensor, before[name])
        assert vars(after)[name].shape == tensor.shape


def test_too_long_streams_are_refused(model: Whisper) -> None:
    state = model.encoder.start(1, LEFT)
    state.position += 148
    with pytest.raises(OptionError, match="152 frames are more than the 150 positions"):
        model.encoder.step(mel(1, 9), state)
    with pytest.raises(OptionError, match="restart the stream at a pause"):
        model.encoder(mel(1, 302))


def test_cached_texts_equal_whole_ones(model: Whisper) -> None:
    tokens = torch.randint(0, 40, (3, 9), generator=torch.Generator().manual_seed(1))
    encoded = model.encoder(mel(3, 60))
    expected = model.decoder(tokens, encoded)
    state = model.decoder.start(encoded)
    parts = [
        model.decoder.step(tokens[:, start:end], state)[0]
        for start, end in ((0, 4), (4, 5), (5, 9))
    ]
    torch.testing.assert_close(
        model.decoder.logits(torch.cat(parts, 1)), expected, atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(model(mel(3, 60), tokens), expected)


def test_texts_of_different_lengths_and_recordings_share_a_batch(model: Whisper) -> None:
    """Padding behind a shorter prompt, frames that one has not, and two texts of a recording."""
    encoded = model.encoder(mel(2, 60))
    long, short = torch.tensor([3, 5, 7, 9]), torch.tensor([4, 6])
    padded = torch.stack([long, torch.tensor([4, 6, 0, 0])])
    state = model.decoder.start(encoded, frames=torch.tensor([30, 17]))
    hidden, _ = model.decoder.step(padded, state, torch.tensor([4, 2]))
    next_token = torch.tensor([[1], [2]])
    after, looked = model.decoder.step(next_token, state)
    alone = model.decoder.start(encoded[1:, :17])
    expected, _ = model.decoder.step(short[None], alone)
    torch.testing.assert_close(hidden[1:, :2], expected, atol=1e-5, rtol=1e-4)
    expected, _ = model.decoder.step(next_token[1:], alone)
    torch.testing.assert_close(after[1:], expected, atol=1e-5, rtol=1e-4)
    assert torch.stack(looked)[:, 1, :, :, 17:].abs().max() == 0
    assert state.length.tolist() == [5, 3]
    twice = state.texts(torch.tensor([0, 0, 1, 1]))
    tokens = torch.tensor([[1], [8], [1], [8]])
    beams, _ = model.decoder.step(tokens, twice)
    for row, token in ((0, 1), (1, 8)):
        single = state.rows(torch.tensor([1]))
        expected, _ = model.decoder.step(torch.tensor([[token]]), single)
        torch.testing.assert_close(beams[2 + row : 3 + row], expected, atol=1e-5, rtol=1e-4)


def test_packed_layers_compute_the_same(model: Whisper) -> None:
    sound, tokens = mel(2, 60), torch.tensor([[1, 2, 3], [4, 5, 6]])
    expected = model(sound, tokens)
    torch.testing.assert_close(
        packed(model, "float32")(sound, tokens), expected, atol=1e-4, rtol=1e-4
    )
    rounded = packed(model, "int8")(sound, tokens)
    assert (rounded - expected).norm() < 0.1 * expected.norm()


def test_sizes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(OptionError, match="divisible by its 3 and 6 heads"):
        WhisperConfig(dim=64, encoder_heads=3)
    with pytest.raises(OptionError, match="encoder_layers is 0"):
        WhisperConfig(encoder_layers=0)
