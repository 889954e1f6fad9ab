"""The service behind all dialects: models, voices, capacity, usage, recordings and streams."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Unpack

from pianissimo.agent.polish import Polisher
from pianissimo.audio.io import SAMPLE_RATE
from pianissimo.decoding.hotwords import Boost
from pianissimo.diarization.options import Diarization
from pianissimo.diarization.sources import live_source
from pianissimo.engine.engine import Engine
from pianissimo.engine.segmented import SegmentedEngine
from pianissimo.errors import EngineFullError, OptionError
from pianissimo.serve.access.accounts import Account
from pianissimo.serve.access.auth import ClientSecrets, KeyRing, key_of, unauthorized
from pianissimo.serve.access.keys import WYOMING, Limits
from pianissimo.serve.access.seats import Queue, Seats, UploadPlaces
from pianissimo.serve.agent import AgentService
from pianissimo.serve.audio_in.decode import Decoders, Upload
from pianissimo.serve.audio_in.pcm import PcmReader
from pianissimo.serve.audio_in.recording import RecordingBlocks, Transcriber
from pianissimo.serve.errors import Refusal, draining
from pianissimo.serve.feed import Feed
from pianissimo.serve.intake import Intake
from pianissimo.serve.live_speakers import LiveSpeakers
from pianissimo.serve.metrics import Metrics
from pianissimo.serve.settings import Settings
from pianissimo.serve.speech import Voices
from pianissimo.serve.tracing import open_tracing
from pianissimo.serve.versions.shadow import Shadows
from pianissimo.serve.versions.store import Lease, ModelChoice, OpenOptions, ServedModel, Store
from pianissimo.serve.written import WrittenForm
from pianissimo.streaming.endpoint import EndpointRules
from pianissimo.transcript import StreamEvent, Transcript

if TYPE_CHECKING:
    from pianissimo.protocols import Recognizer, Synthesizer
    from pianissimo.streaming.session import Session

NO_PAUSES = EndpointRules(trailing_silence=1e9, maximum_utterance=30.0)
"""No pause ends an utterance; text is finalized every 30 s, so that it does not grow forever."""
UPLOADS_PER_FILE = 8
"""Uploads on disk for each recording that is transcribed at once; most are still arriving."""
LIVE_DECODERS_PER_DECODER = 8
"""Live streams of containers for each decoder of recordings; each has a process, mostly idle."""
AUDIO_THREADS = 4
"""Threads that resample, level and search the audio of live streams for speech."""
SPEAKER_THREADS = 2
"""Threads that compare voices; text never waits for them."""


class Service:
    """Created when the server starts, closed when it ends, and shared by all requests."""

    def __init__(
        self,
        settings: Settings,
        recognizers: "Recognizer | Mapping[str, Recognizer]",
        voices: "Mapping[str, Synthesizer] | None" = None,
    ) -> None:
        if not isinstance(recognizers, Mapping):
            recognizers = {recognizers.name: recognizers}
        self.settings = settings
        self._by_voice = Diarization(
            model=settings.diarize_model, latency_ms=settings.diarize_latency_ms
        )
        if settings.diarize_model is not None:
            live_source(self._by_voice)  # a model that cannot be read ends the start
        self.keys = KeyRing(settings.keys, settings.admin_key, settings.replicas)
        self.secrets = ClientSecrets(self.keys, settings.signing_key)
        self.wyoming = Account(WYOMING, Limits())
        self.seats, self.files = Seats(settings.max_streams), Queue(settings.max_files)
        self.uploads = UploadPlaces(UPLOADS_PER_FILE * settings.max_files)
        self.decoders = Decoders(
            settings.decoders, settings.decode_stall_seconds, settings.longest_audio_seconds
        )
        resumes = settings.seats_for_resumes
        self.seats.reserve = resumes
        slots = settings.max_streams + resumes + settings.max_files + settings.max_shadows
        self.live_decoders = Seats(
            LIVE_DECODERS_PER_DECODER * settings.decoders, "live streams of containers"
        )
        self.transcriber = Transcriber(self.decoders)
        self.store = Store(settings, recognizers, slots)
        self.metrics = Metrics(self.store, self.accounts)
        self.metrics.show_capacity(self.seats, self.files)
        self.store.on_retired = self.metrics.retired
        self.shadows = Shadows(self.metrics, self.transcriber, settings.max_shadows)
        self.voices = Voices(settings, self.metrics, voices)
        both = set(self.voices.names).intersection(recognizers)
        if both:
            raise OptionError(f"{min(both)} names a model and a voice; use --voice NAME=VOICE")
        self.agent: AgentService | None = None
        """What answers on the realtime socket; None without a language model."""
        chat = settings.polish_options()
        self.polisher = None if chat is None else Polisher(chat)
        """What revises texts for clients that ask for it; None without a language model."""
        self.draining = False
        self.file_threads = ThreadPoolExecutor(settings.max_files, "pianissimo-file")
        self.audio_threads = ThreadPoolExecutor(AUDIO_THREADS, "pianissimo-audio")
        self.intake = Intake(self.audio_threads)
        self.tracing = open_tracing() if settings.traces else None
        self._speaker_threads = ThreadPoolExecutor(SPEAKER_THREADS, "pianissimo-speakers")

    async def close(self) -> None:
        await self.decoders.close()
        await self.shadows.close()
        await self.store.close()
        if self.agent is not None:
            await self.agent.close()
        if self.polisher is not None:
            await self.polisher.close()
        self.voices.close()
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)
        for threads in (self.file_threads, self.audio_threads, self._speaker_threads):
            threads.shutdown(wait=False, cancel_futures=True)

    @property
    def recognizer(self) -> "Recognizer":
        """The recognizer of the default model."""
        return self.store.models[self.store.default].recognizer

    @property
    def engine(self) -> Engine | SegmentedEngine:
        """The engine of the default model."""
        return self.store.models[self.store.default].engine

    # -- admission and capacity --------------------------------------------------------------------

    @property
    def accounts(self) -> tuple[Account, ...]:
        """All accounts that usage is metered on."""
        without_keys = () if self.settings.wyoming_port is None else (self.wyoming,)
        return (*self.keys.accounts, *without_keys)

    def admit(self, dialect: str, headers: Mapping[str, str]) -> Account:
        """The account of a request or socket; raises Refusal without a valid key."""
        account = self.keys.account(key_of(headers))
        if account is None:
            self.metrics.refusals.labels(dialect, "key").inc()
            raise unauthorized()
        account.requests += 1
        return account

    def acquire_seat(self, dialect: str, account: Account, *, resumed: bool = False) -> None:
        """Acquire a seat for a live stream; call `release_seat` once afterwards.

        A resumed stream may take a seat of the reserve.

        Raises EngineFullError if all seats are in use, Refusal at the limit of the key.
        """
        account.acquire_stream()
        try:
            self.seats.acquire(reserved=resumed)
        except EngineFullError:
            account.release_stream()
            self.metrics.refusals.labels(dialect, "full").inc()
            raise

    def release_seat(self, account: Account) -> None:
        self.seats.release()
        account.release_stream()

    def check_open(self, dialect: str) -> None:
        """Raises Refusal while the server drains."""
        if self.draining:
            self.metrics.refusals.labels(dialect, "draining").inc()
            raise draining()

    def set_draining(self, draining: bool) -> None:
        """Refuse new streams and recordings, or accept them again; open ones continue."""
        self.draining = draining
        self.metrics.draining.set(draining)

    @property
    def idle(self) -> bool:
        """Whether no stream is open, no recording is being transcribed and no text spoken."""
        return self.seats.in_use == self.files.in_use == self.voices.in_use == 0

    def lease(self, dialect: str, choice: ModelChoice, session: str, account: Account) -> Lease:
        """Lease the chosen model; see `Store.choose` and `Store.lease`.

        Raises Refusal if the audio allowance of the key is used up.
        """
        account.check_audio()
        lease = self.store.lease(choice, session, account)
        self.metrics.began(dialect, lease)
        return lease

    def polisher_for(self, wanted: bool | None) -> Polisher | None:
        """What revises the text of a client; raises Refusal if it asks and there is none."""
        if wanted and self.polisher is None:
            raise Refusal(
                400,
                "this server has no language model that polishes; start it with --polish URL",
                "polish_unavailable",
                "polish",
            )
        return self.polisher if wanted else None

    def record_audio(self, dialect: str, lease: Lease, seconds: float) -> None:
        """Meter audio that was accepted from a client."""
        self.metrics.record_audio(dialect, lease, seconds)
        if lease.account is not None:
            lease.account.record_audio(seconds)

    # -- recordings --------------------------------------------------------------------------------

    async def transcribe(
        self,
        upload: Upload,
        lease: Lease,
        boost: Boost = (),
        diarize: Diarization | None = None,
        blocks: RecordingBlocks | None = None,
        language: str | None = None,
        written: WrittenForm | None = None,
    ) -> Transcript:
        """The transcript of an upload, with speakers if `diarize` asks for them.

        `language` is one of `ServedModel.spoken`. `blocks` counts the audio on its way, and its
        channels. `written` is the form of its text. Raises AudioError, EngineFullError if too many
        recordings wait, and OptionError for phrases that the model cannot boost.
        """
        async with self.files.place():
            found = await self._transcribe(upload, lease, boost, diarize, blocks, language)
            return found if written is None else await asyncio.to_thread(written.write, found)

    async def events(
        self,
        upload: Upload,
        lease: Lease,
        boost: Boost = (),
        language: str | None = None,
        written: WrittenForm | None = None,
    ) -> AsyncGenerator[StreamEvent | float]:
        """The events of a recording while it is transcribed, then its length in seconds.

        A streaming model reads it as one more live stream, faster than real time; another model
        gives a single final. Raises what `transcribe` raises.
        """
        async with self.files.place():
            if not lease.model.latencies_ms:
                found = await self._transcribe(upload, lease, boost, language=language)
                if written is not None:
                    found = await asyncio.to_thread(written.write, found)
                yield StreamEvent(
                    *("final", found.text, found.words, 0.0, found.duration),
                    reason="finish",
                    lexical=found.lexical,
                )
                yield found.duration
                return
            async with aclosing(self._live(upload, lease, boost, language, written)) as events:
                async for event in events:
                    yield event

    async def _transcribe(
        self,
        upload: Upload,
        lease: Lease,
        boost: Boost,
        diarize: Diarization | None = None,
        blocks: RecordingBlocks | None = None,
        language: str | None = None,
    ) -> Transcript:
        recognizer, threads = lease.model.recognizer_for(language), self.file_threads
        found = await self.transcriber.transcribe(
            upload, recognizer, threads, boost, blocks, self.diarization(diarize)
        )
        if diarize is None or diarize.by != "channels":  # a shadow hears the mixed channels
            self.shadows.recording(lease, upload, found, boost)
        return found

    async def _live(
        self,
        upload: Upload,
        lease: Lease,
        boost: Boost,
        language: str | None,
        written: WrittenForm | None,
    ) -> AsyncGenerator[StreamEvent | float]:
        options: OpenOptions = {
            "sample_rate": SAMPLE_RATE,
            "latency_ms": lease.model.latencies_ms[-1],
            "boost": boost,
            "language": language,
            "endpoint": NO_PAUSES,
            "watchdog": None,
        }
        reader = PcmReader("pcm_f32le")
        async with self.feed(lease, reader, written=written, **options) as feed:
            feeding = asyncio.create_task(self._push_recording(feed, upload))
            try:
                async for event in feed:
                    yield event
                yield await feeding
            finally:
                feeding.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await feeding

    async def _push_recording(self, feed: Feed, upload: Upload) -> float:
        """Push a recording into a stream as fast as it accepts it; its length in seconds."""
        try:
            async with aclosing(self.decoders.blocks(upload, SAMPLE_RATE)) as blocks:
                async for block in blocks:
                    await feed.push_samples(block)
            await feed.finish()
        except BaseException:
            feed.session.close()
            raise
        return feed.seconds

    def cancel_recordings(self) -> None:
        """The server ends: stop every recording at its next block."""
        self.transcriber.cancel_all()

    # -- live streams ------------------------------------------------------------------------------

    @asynccontextmanager
    async def feed(
        self,
        lease: Lease,
        reader: PcmReader,
        speakers: LiveSpeakers | None = None,
        written: WrittenForm | None = None,
        **options: Unpack[OpenOptions],
    ) -> AsyncIterator[Feed]:
        """A stream of the leased model; see `Engine.open`. `sample_rate` is required.

        `speakers` gets the audio too, and events have the speakers that it finds. `written` is the
        form of its finals.
        """
        feed = await self.open_feed(lease, reader, speakers, written, **options)
        try:
            yield feed
        finally:
            await feed.release()

    async def open_feed(
        self,
        lease: Lease,
        reader: PcmReader,
        speakers: LiveSpeakers | None = None,
        written: WrittenForm | None = None,
        **options: Unpack[OpenOptions],
    ) -> Feed:
        """As `feed`, for a caller that calls `Feed.release` itself."""
        session = await _opened(lease.model, options)
        resumed = options.pop("state", None) is not None
        shadow = None if resumed else self.shadows.stream(lease, **options)
        trace = None
        if self.tracing is not None:
            trace = self.tracing.stream(lease.model.name, options.get("latency_ms"))
        return Feed(
            *(session, reader, options["sample_rate"], self.audio_threads, self.intake),
            shadow,
            lease.account,
            speakers,
            trace,
            written,
        )

    # -- speakers ----------------------------------------------------------------------------------

    def diarization(self, asked: Diarization | None) -> Diarization | None:
        """How speakers are found: by the model of the server, if it can do what is asked."""
        return self._by_voice if asked == Diarization() else asked

    def live_speakers(self, sample_rate: int) -> LiveSpeakers:
        """Finds the speakers of one live stream, beside its recognizer."""
        return LiveSpeakers(sample_rate, self._speaker_threads, self._by_voice)


async def _opened(model: ServedModel, options: OpenOptions) -> "Session":
    """Open a stream; the trie of its phrases is built in a thread."""
    if not options.get("boost"):
        return model.open(**options)
    opening = asyncio.create_task(asyncio.to_thread(lambda: model.open(**options)))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close_unused)
        raise


def _close_unused(opening: "asyncio.Task[Session]") -> None:
    """Close a stream whose client went away while it was opened."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
