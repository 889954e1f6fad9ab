"""The arrival-order speaker cache: how Sortformer networks follow people through any length.

A step encodes [cache | queue | look-back | chunk | look-ahead] again and scores who speaks in the
chunk. The chunk then joins the queue, whose oldest frames move to the cache. A cache that is too
long keeps the frames in which each speaker is clearest, so the outputs of the network stay the
same people. Sizes are those of a stream, not of the weights: one network serves streams of any
latency. Papers: Park et al. 2024 (Sortformer, arXiv 2409.06656), Medennikov et al. 2025 (streaming
Sortformer, arXiv 2507.18446). Numerics follow NeMo 3.0 and Transformers 5.23.

Shape legend: T mel frames, F mel bins, N encoder frames (80 ms), D their width, S speakers, R
scores per encoder frame, K frames of the cache.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pianissimo.audio.features import MelFeatures
from pianissimo.errors import OptionError

MOST_SPEAKERS = 64
LARGEST_CACHE = 1 << 14


@dataclass(frozen=True)
class CacheConfig:
    """What the cache keeps: `frames` K for all `speakers` S, of which `silent_frames` each are
    silence. The shares are of the frames of one speaker."""

    speakers: int
    frames: int
    silent_frames: int
    score_floor: float = 0.25
    latest_boost: float = 0.05
    strong_share: float = 0.75
    weak_share: float = 1.5
    clear_share: float = 0.5
    silence_below: float = 0.2

    def __post_init__(self) -> None:
        if not 1 <= self.speakers <= MOST_SPEAKERS or not 0 <= self.silent_frames <= 1 << 10:
            raise OptionError(
                f"a speaker cache of {self.speakers} speakers with {self.silent_frames} silent "
                f"frames each: expected 1 to {MOST_SPEAKERS} speakers, at most 1024 frames"
            )
        least = (1 + self.silent_frames) * self.speakers
        if not least <= self.frames <= LARGEST_CACHE:
            raise OptionError(
                f"a speaker cache of {self.frames} frames: expected {least} to {LARGEST_CACHE}"
            )
        shares = (self.strong_share, self.weak_share, self.clear_share)
        if not 0 < self.score_floor < 1 or not all(0 <= share <= 64 for share in shares):
            raise OptionError("the scores of the speaker cache are out of range")


@dataclass(frozen=True)
class StepSizes:
    """How one stream is cut, in encoder frames: a step scores `chunk` frames.

    It sees `lookahead` frames after them, `lookback` frames before them again, and a queue of at
    most `queue` frames, of which `moved` or more move to the cache when it is full.
    """

    chunk: int
    lookahead: int
    queue: int
    moved: int
    lookback: int = 0

    def __post_init__(self) -> None:
        sizes = (self.lookahead, self.queue, self.lookback)
        if not all(1 <= n <= LARGEST_CACHE for n in (self.chunk, self.moved)) or not all(
            0 <= n <= LARGEST_CACHE for n in sizes
        ):
            raise OptionError(f"steps of {self} are out of range (1 to {LARGEST_CACHE} frames)")

    @property
    def latency_frames(self) -> int:
        """Encoder frames from a sound to its score, at most."""
        return self.chunk + self.lookahead


@dataclass
class CacheState:
    """What one stream remembers: bounded, whatever its length.

    cache (n <= K, D) with the probabilities (n, S) of its frames, which are those of the last step
    until the cache was `compressed` once; queue (m, D); silence (D,), the mean of `silent` frames.
    """

    cache: Tensor
    probabilities: Tensor
    queue: Tensor
    silence: Tensor
    silent: int = 0
    compressed: bool = False


class SpeakerNetwork(Protocol):
    """Mel frames to the probabilities that each speaker speaks; holds weights only."""

    @property
    def features(self) -> MelFeatures: ...

    @property
    def cache(self) -> CacheConfig: ...

    @property
    def offline(self) -> StepSizes: ...

    @property
    def live(self) -> tuple[StepSizes, ...]:
        """The sizes of live streams, by descending latency."""
        ...

    @property
    def subsampling(self) -> int: ...

    @property
    def scores_per_frame(self) -> int: ...

    @property
    def dim(self) -> int: ...

    @property
    def silence(self) -> Tensor | None:
        """The frame (D,) of silence; None where it is the mean of the stream's silent frames."""
        ...

    def embed(self, mel: Tensor) -> Tensor:
        """(T, F) mel frames -> (N, D) frames without a position, N = ceil(T / subsampling)."""
        ...

    def score(self, frames: Tensor) -> Tensor:
        """(N, D) embedded frames -> (N * R, S) probabilities."""
        ...


def start_cache(network: SpeakerNetwork) -> CacheState:
    """The state of a stream before its first frame."""
    empty = network.features.window.new_zeros(0, network.dim)
    return CacheState(
        empty, empty.new_zeros(0, network.cache.speakers), empty, empty.new_zeros(network.dim)
    )


def cached_step(
    network: SpeakerNetwork,
    frames: Tensor,
    state: CacheState,
    sizes: StepSizes,
    *,
    chunk: int,
    lookback: int = 0,
) -> Tensor:
    """Score `chunk` of the embedded frames (N, D): (chunk * R, S) probabilities. Mutates `state`.

    The `lookback` frames before them were scored in the step before; the frames after them are seen
    only.
    """
    R = network.scores_per_frame
    cached, queued = len(state.cache), len(state.queue)
    scores = network.score(torch.cat([state.cache, state.queue, frames]))
    first = cached + queued + lookback
    probabilities = scores.unflatten(0, (-1, R)).mean(1)  # (N, S)
    _remember(
        network,
        state,
        sizes,
        frames[lookback : lookback + chunk],
        torch.cat([probabilities[: cached + queued], probabilities[first : first + chunk]]),
    )
    return scores[first * R : (first + chunk) * R]


def _remember(
    network: SpeakerNetwork,
    state: CacheState,
    sizes: StepSizes,
    chunk: Tensor,
    probabilities: Tensor,
) -> None:
    """Move a chunk (C, D) to the queue, and what the queue cannot hold to the cache.

    `probabilities` (n + m + C, S) are those of cache, queue and chunk.
    """
    cached = len(state.cache)
    queue = torch.cat([state.queue, chunk])
    if len(queue) <= sizes.queue:
        state.queue = queue
        return
    moved = min(len(queue), max(sizes.moved, len(queue) - sizes.queue))
    state.queue = queue[moved:].clone()
    arriving = probabilities[cached : cached + moved]
    kept = state.probabilities if state.compressed else probabilities[:cached]
    if network.silence is None:
        quiet = queue[:moved][arriving.sum(1) < network.cache.silence_below]
        total = state.silence * state.silent + quiet.sum(0)
        state.silent += len(quiet)
        state.silence = total / max(state.silent, 1)
    state.cache = torch.cat([state.cache, queue[:moved]])
    state.probabilities = torch.cat([kept, arriving])
    if len(state.cache) > network.cache.frames:
        silence = state.silence if network.silence is None else network.silence
        chosen = choose_frames(state.probabilities, network.cache)
        frames = torch.cat([state.cache, silence[None]])
        state.cache = frames[chosen]
        state.probabilities = torch.cat([state.probabilities, kept.new_zeros(1, kept.shape[1])])[
            chosen
        ]
        state.compressed = True


def choose_frames(probabilities: Tensor, config: CacheConfig) -> Tensor:
    """The frames that a cache keeps: indices (K,) into frames (n, S), n for a frame of silence.

    They are ordered by speaker, then by time; a frame in which two people speak may appear twice.
    Of equal scores the earlier one is kept.
    """
    n, S = probabilities.shape
    scores = _frame_scores(probabilities, config)
    scores[config.frames :] += config.latest_boost
    own = config.frames // S - config.silent_frames
    for share, boost in ((config.strong_share, 2.0), (config.weak_share, 1.0)):
        best = scores.sort(dim=0, descending=True, stable=True).indices[: math.floor(own * share)]
        scores = scores.scatter_add(0, best, scores.new_full(best.shape, boost * math.log(2)))
    silence = scores.new_full((config.silent_frames, S), float("inf"))
    ranked = torch.cat([scores, silence]).T.flatten()  # (S * (n + silent))
    values, places = ranked.sort(descending=True, stable=True)
    values, places = values[: config.frames], places[: config.frames]
    last = len(ranked)  # sorts behind all frames
    places = torch.where(values == float("-inf"), last, places).sort().values
    frame = (places % (n + config.silent_frames)).clamp(max=n)
    chosen = torch.where(places == last, n, frame)
    short = config.frames - len(chosen)
    return torch.nn.functional.pad(chosen, (0, short), value=n) if short > 0 else chosen


def _frame_scores(probabilities: Tensor, config: CacheConfig) -> Tensor:
    """How clearly each speaker alone speaks in a frame (n, S): -inf where he does not.

    Frames of several speakers count only for speakers who have few frames of their own.
    """
    log_on = probabilities.clamp(min=config.score_floor).log()
    log_off = (1.0 - probabilities).clamp(min=config.score_floor).log()
    scores = log_on - log_off + log_off.sum(1, keepdim=True) - math.log(0.5)
    speaks = probabilities > 0.5
    scores = scores.masked_fill(~speaks, float("-inf"))
    clear = scores > 0
    least = math.floor(
        (config.frames // config.speakers - config.silent_frames) * config.clear_share
    )
    return scores.masked_fill(~clear & (clear.sum(0) >= least), float("-inf"))


class SpeakerStream:
    """One recording or stream of a network: samples in, probabilities out, in steps of `sizes`.

    How the audio is cut into pushes changes nothing. At the end the last frames are scored with
    the look-ahead that is left. The state does not grow.
    """

    def __init__(self, network: SpeakerNetwork, sizes: StepSizes) -> None:
        self.network, self.sizes = network, sizes
        self.cache = start_cache(network)
        self.scored = 0  # encoder frames
        self._features = network.features.start()
        self._mel = network.features.window.new_zeros(0, network.features.config.n_mels)
        self._first = self._mel_frames = 0  # the encoder frame at which `_mel` begins; all frames

    def push(self, samples: Tensor) -> Tensor:
        """Take samples (n,) of float32 at 16 kHz; the probabilities (m, S) that they complete."""
        return self.push_mel(self.network.features.push(samples, self._features))

    def push_mel(self, mel: Tensor) -> Tensor:
        """The same for mel frames (T, F)."""
        self._mel = torch.cat([self._mel, mel])
        self._mel_frames += len(mel)
        ready = self._first + len(self._mel) // self.network.subsampling
        found = [self._nothing]
        while self.scored + self.sizes.latency_frames <= ready:
            found.append(self._step(self.sizes.chunk, self.sizes.lookahead))
        return torch.cat(found)

    def finish(self) -> Tensor:
        """The probabilities (m, S) of everything that is not scored yet."""
        found = [self.push_mel(self.network.features.finish(self._features))]
        end = self._first - (-len(self._mel) // self.network.subsampling)
        before = self.scored * self.network.scores_per_frame - len(found[0])
        while self.scored < end:
            chunk = min(self.sizes.chunk, end - self.scored)
            found.append(self._step(chunk, min(self.sizes.lookahead, end - self.scored - chunk)))
        whole = -(-self._mel_frames * self.network.scores_per_frame // self.network.subsampling)
        return torch.cat(found)[: whole - before]

    @property
    def _nothing(self) -> Tensor:
        return self._mel.new_zeros(0, self.network.cache.speakers)

    def _step(self, chunk: int, lookahead: int) -> Tensor:
        R = self.network.subsampling
        lookback = self.scored - self._first
        frames = self.network.embed(self._mel[: (lookback + chunk + lookahead) * R])
        scores = cached_step(
            self.network, frames, self.cache, self.sizes, chunk=chunk, lookback=lookback
        )
        self.scored += chunk
        first = max(self._first, self.scored - self.sizes.lookback)
        self._mel, self._first = self._mel[(first - self._first) * R :].clone(), first
        return scores


def sizes_for(network: SpeakerNetwork, latency_ms: int | None) -> StepSizes:
    """The live sizes of at most that latency, without one those closest to a second.

    Raises OptionError naming the latencies there are.
    """
    frame_ms = 1000 * frame_seconds(network)
    known = {round(each.latency_frames * frame_ms): each for each in network.live}
    if latency_ms is None:
        return min(known.items(), key=lambda item: abs(item[0] - 1000))[1]
    fitting = [ms for ms in known if ms <= latency_ms]
    if not fitting:
        raise OptionError(
            f"speakers are known after {min(known)} ms at the earliest, not {latency_ms}; this "
            f"model has {', '.join(map(str, sorted(known)))} ms"
        )
    return known[max(fitting)]


def frame_seconds(network: SpeakerNetwork) -> float:
    """The length of an encoder frame."""
    return network.subsampling * network.features.config.hop_seconds
