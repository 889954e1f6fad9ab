"""Whisper's log-mel features: log10 of power in mel bands, the quiet cut off, about [-1, 1].

Shape legend: B batch, N samples, T mel frames, F mel bins.

Frames of 25 ms every 10 ms, centred, with a periodic Hann window. Published Whisper cuts off what
is 80 dB below the loudest cell of its 30 s, which a stream cannot know. For streams the floor is a
constant: speech that went through the gain front end has its loudest cells near `LIVE_PEAK`.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from pianissimo.audio.features import FeatureConfig, slaney_filterbank

WINDOW, HOP = 400, 160
SMALLEST_POWER = 1e-10
DEPTH = 8.0
"""How far below the loudest cell cells are kept, in powers of ten."""
LIVE_PEAK = 1.5
"""log10 of the power of the loudest cells of speech at the front end's level."""
SILENT = -10.0
"""The feature of digital silence: log10 of `SMALLEST_POWER`."""


def mel_filters(n_mels: int) -> Tensor:
    """(F, 201) filters of Slaney's scale, those published with Whisper."""
    return slaney_filterbank(
        FeatureConfig(n_mels=n_mels, fft_samples=WINDOW, window_samples=WINDOW, preemphasis=0.0)
    )


def log_mel(samples: Tensor, filters: Tensor) -> Tensor:
    """(B, N) samples -> (B, N // 160, F), log10 of power, before any floor."""
    window = torch.hann_window(WINDOW, device=samples.device)
    spectrum = torch.stft(samples, WINDOW, HOP, window=window, return_complex=True)
    power = torch.view_as_real(spectrum[..., : samples.shape[1] // HOP]).pow(2).sum(-1)
    return (filters @ power).clamp(min=SMALLEST_POWER).log10().transpose(1, 2)


def scaled(log: Tensor, peak: Tensor | float | None = None) -> Tensor:
    """(B, T, F) of `log_mel` -> what Whisper takes. Without `peak` each row's own is taken."""
    top = log.amax((1, 2), keepdim=True) if peak is None else torch.as_tensor(peak)
    return (torch.maximum(log, top - DEPTH) + 4.0) / 4.0


class WhisperFeatures:
    """`Features` of live streams: log10 of power, before any floor."""

    def __init__(self, n_mels: int, device: torch.device) -> None:
        self.config = FeatureConfig(
            n_mels=n_mels, fft_samples=WINDOW, window_samples=WINDOW, preemphasis=0.0
        )
        """How the features divide samples into frames."""
        self._filters = mel_filters(n_mels).to(device)
        self._window = torch.hann_window(WINDOW, device=device)

    def frames(self, windows: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, 1 + N) samples -> (B, T, F); see `streaming_encoder.Features`."""
        samples = windows[:, 1:]
        if valid is not None:
            index = torch.arange(1, windows.shape[1], device=windows.device)
            samples = samples * (index < valid[:, None])
        spectrum = torch.fft.rfft(samples.unfold(1, WINDOW, HOP) * self._window)
        power = torch.view_as_real(spectrum).pow(2).sum(-1)
        return (power @ self._filters.T).clamp(min=SMALLEST_POWER).log10()


def window_of(samples: Tensor, seconds: float) -> Tensor:
    """Pad (N,) samples with zeros, or cut them, to a length in seconds: (1, N')."""
    n = round(seconds * 16_000)
    return F.pad(samples[:n], (0, max(0, n - len(samples))))[None]
