"""All settings of a server, checked once at the start."""

import ipaddress
import re
import secrets
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pianissimo.errors import OptionError
from pianissimo.serve.access.keys import ApiKey

if TYPE_CHECKING:
    from pianissimo.agent.chat import ChatOptions
    from pianissimo.audio.gain import GainMode

CONNECTIONS_PER_SEAT, LEAST_CONNECTIONS = 4, 64
"""Open sockets for each stream that can be served; most wait for their first message."""
RESUMES_PER_SEAT = 8
REPLICA = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
SHORTEST_SIGNING_KEY = 16
NAMED = re.compile(r"([A-Za-z0-9][\w.-]*)=(.+)", re.S)


def parse_source(text: str | None) -> tuple[str | None, str | None]:
    """The name, if any, and the source of `NAME=MODEL` or `MODEL`."""
    found = NAMED.fullmatch(text or "")
    return (found[1], found[2]) if found else (None, text)


def random_name() -> str:
    """A name for a server that was given none."""
    return secrets.token_hex(3)


@dataclass(frozen=True)
class Settings:
    """Options of `pianissimo serve`.

    `models` are loaded at the start, the first is the default; the embedded one if there is none.
    `voices` speak, `[NAME=]VOICE`; the installed ones if there is none. `max_speeches` texts are
    spoken at once, each of at most `longest_text` characters; as many more may wait.
    `diarize_model` finds speakers where neither their number nor names are given, on sockets at
    most `diarize_latency_ms` late; without one voices are compared.
    `spare_models`, named as `NAME=MODEL`, can be loaded later. `gain` is that of `pianissimo.load`,
    for all models. `max_streams` live streams are served and `max_files` recordings transcribed at
    once; as many recordings more may wait. A shadow processes `max_shadows` streams at once. A
    socket that sends nothing for `idle_seconds` is closed. A disconnected /v1/stream can be resumed
    for `resume_seconds`; it keeps its seat for `linger_seconds` of them. With a `state_folder` its
    state is stored there every `checkpoint_seconds` (0: only when the server ends), and every
    server that shares the folder can resume it. `replica` names this server in the tokens of its
    streams; `resume_seats` more seats are for streams that come from another server, an eighth of
    `max_streams` by default if there is a state folder. Servers with the same `signing_key` accept
    each other's client secrets. Limits of keys are divided by `replicas`. At SIGTERM, streams have
    `drain_seconds` to finish. Plain `api_keys` have no names and no limits of their own. `insecure`
    admits other machines without a key. Wyoming has its own port, if one is set, and no
    authentication. With `tls_certificate` and `tls_key`, PEM files, the server speaks TLS, except
    on the Wyoming port. The page shows the report of `pianissimo quietbench` in the folder
    `quietbench`. With `llm_url` and `llm_model`, an OpenAI-compatible chat endpoint, the realtime
    socket answers; with `llm_eager` answers are prepared before a turn has surely ended, by default
    on this machine only. `smart_turn` is the path of a Smart Turn model, or "pipecat" for the one
    in that package. `polish`, the URL of such an endpoint, and `polish_model` revise finals and
    transcripts for clients that ask for it, within `polish_timeout_seconds` for 400 words.
    With `traces` each utterance becomes a span of OpenTelemetry.
    """

    models: tuple[str, ...] = ()
    voices: tuple[str, ...] = ()
    spare_models: tuple[str, ...] = ()
    diarize_model: str | None = None
    diarize_latency_ms: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    gain: "GainMode | None" = None
    host: str = "127.0.0.1"
    port: int = 7860
    wyoming_port: int | None = None
    max_streams: int = 64
    max_files: int = 2
    max_shadows: int = 8
    max_speeches: int = 4
    longest_text: int = 4096
    largest_upload_mb: float = 512.0
    longest_audio_seconds: float = 4 * 3600.0
    decoders: int = 2
    decode_stall_seconds: float = 30.0
    idle_seconds: float = 300.0
    resume_seconds: float = 120.0
    linger_seconds: float = 5.0
    state_folder: Path | None = None
    checkpoint_seconds: float = 5.0
    replica: str = field(default_factory=random_name)
    replicas: int = 1
    resume_seats: int | None = None
    signing_key: str | None = field(default=None, repr=False)
    drain_seconds: float = 10.0
    api_keys: tuple[str | ApiKey, ...] = ()
    admin_key: str | None = None
    allow_origins: tuple[str, ...] = ()
    insecure: bool = False
    strict_commits: bool = False
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    quietbench: Path | None = None
    llm_url: str | None = None
    llm_model: str | None = None
    llm_key: str | None = None
    llm_timeout_seconds: float = 15.0
    llm_eager: bool | None = None
    llm_instructions: str | None = None
    smart_turn: str | None = None
    polish: str | None = None
    polish_model: str | None = None
    polish_key: str | None = None
    polish_timeout_seconds: float = 5.0
    traces: bool = False

    def __post_init__(self) -> None:
        if min(self.max_streams, self.max_files, self.decoders) < 1:
            raise OptionError("a server needs at least one stream, one file and one decoder")
        if min(self.max_speeches, self.longest_text) < 1:
            raise OptionError("max_speeches and longest_text must be at least 1")
        seconds = (self.longest_audio_seconds, self.decode_stall_seconds, self.idle_seconds)
        if min(*seconds, self.largest_upload_mb) <= 0:
            raise OptionError("the limits of a server must be above 0")
        if not 0 <= self.linger_seconds <= self.resume_seconds:
            raise OptionError("linger_seconds must be from 0 to resume_seconds")
        if self.drain_seconds < 0 or self.max_shadows < 1:
            raise OptionError("drain_seconds must be at least 0 and max_shadows at least 1")
        self._check_replica()
        for text in self.spare_models:
            if parse_source(text)[0] is None:
                raise OptionError(f"a spare model needs a name: --spare-model NAME={text}")
        for port in (self.port, self.wyoming_port or 0):
            if not 0 <= port <= 65_535:
                raise OptionError(f"{port} is not a port; choose one from 0 to 65535")
        if self.admin_key is not None and not self.admin_key.strip():
            raise OptionError("an API key must not be empty")
        keys = self.keys
        if len({key.key for key in keys}) < len(keys) or len({k.name for k in keys}) < len(keys):
            raise OptionError("two API keys are the same, or have the same name")
        if not (self.loopback or self.api_keys or self.insecure):
            raise OptionError(
                f"a server on {self.host} needs an API key (--api-key); "
                "or listen on 127.0.0.1, or add --insecure"
            )
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise OptionError("TLS needs both: --tls-certificate and --tls-key")
        if (self.llm_url is None) != (self.llm_model is None):
            raise OptionError("a language model needs both: --llm-url and --llm-model")
        if self.llm_url is not None:
            self._check_agent()
        if (self.polish is None) != (self.polish_model is None):
            raise OptionError("polishing needs both: --polish URL and --polish-model NAME")
        self.polish_options()
        if self.tls_certificate is not None:
            self._check_tls()
        if self.wyoming_port is not None and not (self.loopback or self.insecure):
            raise OptionError(
                f"the Wyoming protocol has no authentication: on {self.host} it needs --insecure; "
                "or listen on 127.0.0.1"
            )

    def _check_replica(self) -> None:
        if not 0 <= self.checkpoint_seconds < 1e6:
            raise OptionError("checkpoint_seconds must be 0 or more")
        if not REPLICA.fullmatch(self.replica):
            raise OptionError(
                f"the replica {self.replica!r} needs a name of letters, digits, _ and -"
            )
        if self.replicas < 1 or (self.resume_seats or 0) < 0:
            raise OptionError("replicas must be at least 1 and resume_seats at least 0")
        if self.signing_key is not None and len(self.signing_key) < SHORTEST_SIGNING_KEY:
            raise OptionError(
                f"the signing key needs at least {SHORTEST_SIGNING_KEY} characters; "
                "`openssl rand -hex 32` makes one"
            )

    @property
    def seats_for_resumes(self) -> int:
        """Seats beside `max_streams` for streams that come from another server."""
        if self.resume_seats is not None:
            return self.resume_seats
        return 0 if self.state_folder is None else -(-self.max_streams // RESUMES_PER_SEAT)

    def polish_options(self) -> "ChatOptions | None":
        """The language model that revises; None without one. Raises OptionError for a bad URL."""
        from pianissimo.agent.chat import ChatOptions

        if self.polish is None or self.polish_model is None:
            return None
        seconds = self.polish_timeout_seconds
        return ChatOptions(self.polish, self.polish_model, self.polish_key, seconds)

    def _check_agent(self) -> None:
        from pianissimo.agent.chat import ChatOptions
        from pianissimo.agent.smart_turn import find_model

        assert self.llm_url is not None and self.llm_model is not None
        ChatOptions(self.llm_url, self.llm_model, self.llm_key, self.llm_timeout_seconds)
        if self.smart_turn is not None:
            find_model(self.smart_turn)

    def _check_tls(self) -> None:
        assert self.tls_certificate is not None
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.tls_certificate, self.tls_key)
        except OSError as error:  # ssl.SSLError is one, too
            raise OptionError(
                f"{self.tls_certificate} and {self.tls_key} cannot be used for TLS ({error}); "
                "both must be readable PEM files that belong together"
            ) from error

    @property
    def keys(self) -> tuple[ApiKey, ...]:
        """All API keys; one without a name is named by its number."""
        return tuple(
            key if isinstance(key, ApiKey) else ApiKey(f"key-{number}", key)
            for number, key in enumerate(self.api_keys, start=1)
        )

    @property
    def loopback(self) -> bool:
        """Whether the server listens on a loopback address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def most_connections(self) -> int:
        """Sockets that one address or one key may have open, those without a seat included."""
        return max(LEAST_CONNECTIONS, CONNECTIONS_PER_SEAT * self.max_streams)

    @property
    def largest_upload_bytes(self) -> int:
        return round(self.largest_upload_mb * 1e6)
