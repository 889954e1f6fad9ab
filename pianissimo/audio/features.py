"""Log-mel features, whole or incremental, numerically those of NeMo's streaming front end.

Shape legend: B batch, N samples, T mel frames, F mel bins.

Definition (NeMo `AudioToMelSpectrogramPreprocessor`, Hugging Face extractors of the same models):
pre-emphasis, frames of `fft_samples` every `hop_samples`, centered with zeros, symmetric Hann
window in the middle of the frame, power spectrum, Slaney mel bands and normalization, natural
logarithm of (power + `log_guard`). Frame t reads samples hop*t - window/2 ... hop*t + window/2 - 1.
A finished utterance of N samples has N // hop frames.

Whole and incremental features are one algorithm: `MelFeatures.forward` pushes everything at once.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from pianissimo.audio import SAMPLE_RATE
from pianissimo.errors import OptionError

FRAMES_PER_BLOCK = 2048
"""Frames transformed at once: bounds the memory of a long push at about 20 MB."""
MOST_MELS = 1024
LONGEST_FRAME_SAMPLES = 1 << 16


@dataclass(frozen=True)
class FeatureConfig:
    """What the spectrogram of a model is made of; lengths in samples at `sample_rate` (Hz)."""

    n_mels: int = 128
    sample_rate: int = SAMPLE_RATE
    fft_samples: int = 512
    window_samples: int = 400
    hop_samples: int = 160
    preemphasis: float = 0.97
    log_guard: float = 2.0**-24
    normalize: Literal["none", "per_feature"] = "none"

    def __post_init__(self) -> None:
        if self.sample_rate != SAMPLE_RATE:
            raise OptionError(f"features of {self.sample_rate} Hz, expected {SAMPLE_RATE}")
        if not 1 <= self.n_mels <= MOST_MELS:
            raise OptionError(f"features have {self.n_mels} mel bins, expected 1 to {MOST_MELS}")
        fft, window = self.fft_samples, self.window_samples
        if not 2 <= window <= fft <= LONGEST_FRAME_SAMPLES or (fft - window) % 2:
            raise OptionError(
                f"window_samples {window} in fft_samples {fft}: expected 2 or more in at most "
                f"{LONGEST_FRAME_SAMPLES}, and an even difference"
            )
        if not 1 <= self.hop_samples <= LONGEST_FRAME_SAMPLES:
            raise OptionError(
                f"hop_samples is {self.hop_samples}, expected 1 to {LONGEST_FRAME_SAMPLES}"
            )
        if not 0 < self.log_guard < 1e6 or not abs(self.preemphasis) < 1e6:
            raise OptionError(
                f"log_guard {self.log_guard} or preemphasis {self.preemphasis} is out of range"
            )

    @property
    def hop_seconds(self) -> float:
        return self.hop_samples / self.sample_rate

    @cached_property
    def reach_samples(self) -> int:
        """Samples after its center that a frame needs: those under the window."""
        return self.window_samples // 2


@dataclass
class FeatureState:
    """What one stream's features remember between pushes.

    `buffer` holds pre-emphasised samples from `frames * hop - fft // 2` on; `samples` and `frames`
    count what came in and what went out since the start of the stream.
    """

    buffer: Tensor
    last_sample: Tensor
    samples: int = 0
    frames: int = 0


class MelFeatures(nn.Module):
    """Samples to log-mel frames; holds the window and the filterbank, never a stream's state."""

    window: Tensor
    filterbank: Tensor

    def __init__(self, config: FeatureConfig) -> None:
        super().__init__()
        self.config = config
        window = torch.hann_window(config.window_samples, periodic=False)
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("filterbank", slaney_filterbank(config), persistent=False)

    def forward(self, samples: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, N) float32 samples, (B,) valid lengths -> (B, T, F) frames, (B,) frame counts.

        Frames past a row's own count are 0.0, whatever is in `samples` there.
        """
        batch, n = samples.shape
        if lengths is None:
            lengths = torch.full((batch,), n, dtype=torch.long)
        counts = [int(length) // self.config.hop_samples for length in lengths]
        out = samples.new_zeros(batch, max(counts, default=0), self.config.n_mels)
        for row, count in enumerate(counts):
            out[row, :count] = self.whole(samples[row, : int(lengths[row])])
        return out, torch.tensor(counts, dtype=torch.long, device=samples.device)

    def whole(self, samples: Tensor) -> Tensor:
        """All frames of one finished utterance: (N,) -> (T, F), normalized if the model asks."""
        state = self.start()
        frames = torch.cat([self.push(samples, state), self.finish(state)])
        return normalize_per_feature(frames) if self.config.normalize == "per_feature" else frames

    def start(self) -> FeatureState:
        """The state of a stream that has heard nothing."""
        zeros = self.window.new_zeros(self.config.fft_samples // 2)
        return FeatureState(buffer=zeros, last_sample=zeros[:0])

    def push(self, samples: Tensor, state: FeatureState) -> Tensor:
        """Take (N,) samples, N >= 0, and return the (T, F) frames they complete."""
        if len(samples):
            previous = torch.cat([state.last_sample, samples[:-1]])
            emphasised = samples.clone()
            tail = emphasised[len(samples) - len(previous) :]
            tail -= self.config.preemphasis * previous
            state.last_sample = samples[-1:].clone()
            state.buffer = torch.cat([state.buffer, emphasised])
            state.samples += len(samples)
        ready = (state.samples - self.config.reach_samples) // self.config.hop_samples + 1
        return self._emit(max(ready, state.frames), state)

    def finish(self, state: FeatureState) -> Tensor:
        """The last frames of the utterance, with zeros on their right: (T, F)."""
        return self._emit(max(state.samples // self.config.hop_samples, state.frames), state)

    def frames(self, windows: Tensor, valid: Tensor | None = None) -> Tensor:
        """Frames of many streams at once, from samples alone: (B, 1 + N) -> (B, T, F).

        Each row begins one sample before its first frame, for the pre-emphasis, and N is
        (T - 1) * hop + fft; zeros stand for what was before the stream. `valid` (B,) says how many
        of the 1 + N samples a finished row has: what follows is silence after the pre-emphasis.
        """
        emphasised = windows[:, 1:] - self.config.preemphasis * windows[:, :-1]
        if valid is not None:
            index = torch.arange(1, windows.shape[1], device=windows.device)
            emphasised = emphasised * (index < valid[:, None])
        frames = emphasised.unfold(1, self.config.fft_samples, self.config.hop_samples)
        return self._log_mel(frames)

    def _emit(self, until: int, state: FeatureState) -> Tensor:
        config, count = self.config, until - state.frames
        if count <= 0:
            return self.window.new_zeros(0, config.n_mels)
        needed = (count - 1) * config.hop_samples + config.fft_samples
        padded = nn.functional.pad(state.buffer, (0, max(0, needed - len(state.buffer))))
        frames = padded[:needed].unfold(0, config.fft_samples, config.hop_samples)
        state.buffer = state.buffer[count * config.hop_samples :].clone()
        state.frames = until
        return torch.cat([self._log_mel(block) for block in frames.split(FRAMES_PER_BLOCK)])

    def _log_mel(self, frames: Tensor) -> Tensor:
        side = (self.config.fft_samples - self.config.window_samples) // 2
        window = nn.functional.pad(self.window, (side, side))
        spectrum = torch.view_as_real(torch.fft.rfft(frames * window))
        magnitude = spectrum.pow(2).sum(-1).sqrt()
        power = magnitude.pow(2) @ self.filterbank.T
        return torch.log(power + self.config.log_guard)


def normalize_per_feature(frames: Tensor) -> Tensor:
    """Zero mean and unit deviation of each bin over a whole utterance (T, F), as in NeMo."""
    if len(frames) < 2:
        return frames - frames
    return (frames - frames.mean(0)) / (frames.std(0) + 1e-5)


def slaney_filterbank(config: FeatureConfig) -> Tensor:
    """Mel filterbank (F, fft // 2 + 1) on Slaney's scale, each band of unit area over frequency.

    Slaney, "Auditory Toolbox" (1998): linear below 1 kHz, logarithmic above. Computed in float64
    so that it equals the one stored in NeMo checkpoints exactly.
    """
    top = hz_to_mel(torch.tensor(config.sample_rate / 2, dtype=torch.float64))
    edges = mel_to_hz(torch.linspace(0.0, float(top), config.n_mels + 2, dtype=torch.float64))
    bins = torch.linspace(
        0.0, config.sample_rate / 2, config.fft_samples // 2 + 1, dtype=torch.float64
    )
    widths = edges.diff()
    ramps = edges[:, None] - bins[None, :]
    rising = -ramps[:-2] / widths[:-1, None]
    falling = ramps[2:] / widths[1:, None]
    bands = torch.minimum(rising, falling).clamp(min=0)
    area = 2.0 / (edges[2:] - edges[:-2])
    return (bands.float().double() * area[:, None]).float()


_HZ_PER_MEL = 200.0 / 3
_BREAK_HZ = 1000.0
_BREAK_MEL = _BREAK_HZ / _HZ_PER_MEL
_LOG_STEP = torch.log(torch.tensor(6.4, dtype=torch.float64)) / 27.0


def hz_to_mel(hz: Tensor) -> Tensor:
    """Slaney's scale: linear to 1000 Hz, logarithmic above."""
    above = _BREAK_MEL + torch.log(hz.clamp(min=_BREAK_HZ) / _BREAK_HZ) / _LOG_STEP
    return torch.where(hz >= _BREAK_HZ, above, hz / _HZ_PER_MEL)


def mel_to_hz(mel: Tensor) -> Tensor:
    """The inverse of `hz_to_mel`."""
    above = _BREAK_HZ * torch.exp(_LOG_STEP * (mel - _BREAK_MEL))
    return torch.where(mel >= _BREAK_MEL, above, mel * _HZ_PER_MEL)
