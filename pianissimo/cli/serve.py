"""`pianissimo serve`: models behind the protocols of OpenAI, Deepgram and Wyoming."""

import json
import logging
import signal
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pianissimo.cli.command import command
from pianissimo.cli.options import DeviceOption, DtypeOption, GainOption, VerboseOption
from pianissimo.cli.output import INTERRUPTED, UNEXPECTED, say
from pianissimo.errors import MissingExtraError, OptionError

if TYPE_CHECKING:
    from pianissimo.protocols import Recognizer
    from pianissimo.serve.settings import Settings

LARGEST_MESSAGE_BYTES = 16 << 20
GRACE_SECONDS = 20


def _read_settings(context: typer.Context, path: Path | None) -> Path | None:
    """Read defaults from a TOML file; the command line and the environment take precedence."""
    if path is None:
        return None
    try:
        given = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"the settings file {path} cannot be read: {error}") from error
    defaults = {name.replace("-", "_"): value for name, value in given.items()}
    known = {param.name for param in context.command.params} - {"settings", "help"}
    for name, value in defaults.items():
        if name not in known or isinstance(value, dict):
            raise OptionError(
                f"{name!r} in {path} is not an option of `pianissimo serve`; write options as "
                "max-streams = 64, without tables"
            )
    context.default_map = defaults
    return path


@dataclass(frozen=True)
class ServedModels:
    """The models to serve, and how they compute."""

    settings: Annotated[
        Path | None,
        typer.Option(
            is_eager=True,
            callback=_read_settings,
            metavar="FILE",
            help="TOML file with any of these options; the command line and the environment take "
            "precedence.",
        ),
    ] = None
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="[NAME=]MODEL",
            help="Model name (see `pianissimo models list`), model folder or .nemo file; "
            "repeatable, the first is the default [default: whisper-tiny-en].",
        ),
    ] = None
    spare_model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=MODEL", help="Model that /admin can load later; repeatable."),
    ] = None
    voice: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]VOICE",
            help="Voice that speaks (see `pianissimo speak --list`); repeatable, the first is the "
            "default [default: the installed ones].",
        ),
    ] = None
    diarize_model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Folder or .nemo file of Nemotron 3 Diarization or Sortformer, for requests that "
            "ask for speakers but not for their number or names [default: compare voices].",
        ),
    ] = None
    diarize_latency: Annotated[
        int | None,
        typer.Option(metavar="MS", help="Latency of the speakers of that model on sockets."),
    ] = None
    device: DeviceOption = "auto"
    dtype: DtypeOption = "float32"
    gain: GainOption = None
    offline: Annotated[
        bool,
        typer.Option(
            help="Do not use the network; verify downloaded models against their lock files."
        ),
    ] = False


@dataclass(frozen=True)
class NetworkOptions:
    """Addresses, TLS and web origins."""

    host: Annotated[str, typer.Option(metavar="HOST", help="Address to bind.")] = "127.0.0.1"
    port: Annotated[int, typer.Option(metavar="PORT", help="Port; 0 picks a free one.")] = 7860
    wyoming_port: Annotated[
        int | None,
        typer.Option(
            metavar="PORT", help="Port of the Wyoming protocol (Home Assistant) [default: off]."
        ),
    ] = None
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="Web origin that may connect; repeatable, * for all."),
    ] = None
    tls_certificate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TLS certificate (PEM).")
    ] = None
    tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Key of the TLS certificate (PEM).")
    ] = None
    strict_commits: Annotated[
        bool,
        typer.Option(
            help="Answer commits of an empty realtime buffer with an error, as OpenAI does."
        ),
    ] = False
    quietbench: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Output folder of `quietbench` to show on the page."),
    ] = None


@dataclass(frozen=True)
class LimitOptions:
    """What the server accepts at once, and for how long."""

    max_streams: Annotated[int, typer.Option(metavar="N", help="Maximum concurrent streams.")] = 64
    max_files: Annotated[
        int, typer.Option(metavar="N", help="Maximum concurrent file transcriptions.")
    ] = 2
    max_shadows: Annotated[
        int, typer.Option(metavar="N", help="Maximum concurrent streams of a shadow model.")
    ] = 8
    max_speeches: Annotated[
        int, typer.Option(metavar="N", help="Maximum number of texts spoken at once.")
    ] = 4
    longest_text: Annotated[
        int, typer.Option(metavar="N", help="Maximum length of a text to speak, in characters.")
    ] = 4096
    largest_upload_mb: Annotated[
        float, typer.Option(metavar="MB", help="Largest upload in MB.")
    ] = 512.0
    longest_audio_seconds: Annotated[
        float, typer.Option(metavar="SECONDS", help="Longest recording in seconds.")
    ] = 4 * 3600.0
    decoders: Annotated[int, typer.Option(metavar="N", help="Audio decoder processes.")] = 2
    idle_seconds: Annotated[
        float, typer.Option(metavar="SECONDS", help="Close sockets after this idle time.")
    ] = 300.0
    resume_seconds: Annotated[
        float,
        typer.Option(metavar="SECONDS", help="How long an interrupted /v1/stream can be resumed."),
    ] = 120.0
    drain_seconds: Annotated[
        float,
        typer.Option(metavar="SECONDS", help="Time for streams to finish after SIGTERM."),
    ] = 10.0


@dataclass(frozen=True)
class ReplicaOptions:
    """What survives this process, and what it shares with other servers."""

    state_folder: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Store the states of /v1/stream in DIR; every server that shares DIR can resume "
            "them. The files contain transcripts.",
        ),
    ] = None
    checkpoint_seconds: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="Interval between stored states of a stream; 0 stores them only at shutdown.",
        ),
    ] = 5.0
    replica: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name of this server in the tokens of its streams [default: random].",
        ),
    ] = None
    replicas: Annotated[
        int, typer.Option(metavar="N", help="Number of servers; key limits are divided by it.")
    ] = 1
    resume_seats: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Streams from other servers beside --max-streams "
            "[default: an eighth of it with --state-folder].",
        ),
    ] = None
    signing_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="Accept client secrets of servers with the same KEY. Prefer "
            "PIANISSIMO_SIGNING_KEY.",
        ),
    ] = None
    traces: Annotated[
        bool,
        typer.Option(
            "--traces",
            help="Send a span for each utterance to an OpenTelemetry collector, as the OTEL_* "
            "variables say (extra otel).",
        ),
    ] = False


@dataclass(frozen=True)
class AccessOptions:
    """Who may use the server."""

    api_key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            help="API key for clients; repeatable. Prefer PIANISSIMO_API_KEY.",
        ),
    ] = None
    key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="TOML file of named keys with limits; see docs/operations.md.",
        ),
    ] = None
    admin_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Key for /metrics and /admin.")
    ] = None
    insecure: Annotated[bool, typer.Option(help="Accept other machines without an API key.")] = (
        False
    )


@dataclass(frozen=True)
class PolishOptions:
    """The language model that revises finals and transcripts for clients that ask for it."""

    polish: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="OpenAI-compatible endpoint of a language model that may correct texts; "
            "clients ask for it.",
        ),
    ] = None
    polish_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the model that corrects.")
    ] = None
    polish_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Key of its endpoint. Prefer PIANISSIMO_POLISH_KEY."),
    ] = None
    polish_timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", help="Longest wait for 400 words; later corrections are dropped."
        ),
    ] = 5.0


@dataclass(frozen=True)
class AgentOptions:
    """The language model that answers on the realtime socket, and when it does."""

    llm_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="OpenAI-compatible endpoint of a language model, such as "
            "http://127.0.0.1:11434/v1; /v1/realtime then answers.",
        ),
    ] = None
    llm_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the language model.")
    ] = None
    llm_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Key of the endpoint. Prefer PIANISSIMO_LLM_KEY."),
    ] = None
    llm_timeout: Annotated[
        float,
        typer.Option(metavar="SECONDS", help="Longest wait for the language model's next token."),
    ] = 15.0
    llm_instructions: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="System prompt for clients that do not send one."),
    ] = None
    llm_eager: Annotated[
        bool | None,
        typer.Option(
            "--llm-eager/--no-llm-eager",
            help="Prepare answers before the end of a turn is certain; discarded ones cost tokens "
            "[default: for endpoints on this machine].",
        ),
    ] = None
    smart_turn: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|pipecat",
            help="Smart Turn v3 model (.onnx) for semantic_vad, or pipecat for the one in that "
            "package [default: rules].",
        ),
    ] = None


@dataclass(frozen=True)
class LogOptions:
    """What is logged, and how."""

    log_json: Annotated[bool, typer.Option(help="Log one JSON object per line.")] = False
    verbose: VerboseOption = False


@command
def serve(
    models: ServedModels,
    network: NetworkOptions,
    limits: LimitOptions,
    replica: ReplicaOptions,
    access: AccessOptions,
    agent: AgentOptions,
    polish: PolishOptions,
    log: LogOptions,
) -> None:
    """Start the server for transcription and speech.

    It implements the APIs of OpenAI and Deepgram, WebSockets and Wyoming, and has a web page,
    metrics and model management.

    SIGTERM or Ctrl-C drains the server: new clients are refused, streams get --drain-seconds to
    finish, then sockets are closed with code 1012 and their state is saved. A second signal stops
    it at once.
    """
    settings = _settings(models, network, limits, replica, access, agent, polish)
    raise typer.Exit(_run(settings, log, models.offline))


def _settings(
    models: ServedModels,
    network: NetworkOptions,
    limits: LimitOptions,
    replica: ReplicaOptions,
    access: AccessOptions,
    agent: AgentOptions,
    polish: PolishOptions,
) -> "Settings":
    from pianissimo.serve.access.keys import read_keys
    from pianissimo.serve.settings import Settings, random_name

    file_keys = read_keys(access.key_file) if access.key_file else ()
    return Settings(
        models=tuple(models.model or ()),
        spare_models=tuple(models.spare_model or ()),
        voices=tuple(models.voice or ()),
        diarize_model=models.diarize_model,
        diarize_latency_ms=models.diarize_latency,
        device=models.device,
        dtype=models.dtype,
        gain=models.gain,
        host=network.host,
        port=network.port,
        wyoming_port=network.wyoming_port,
        max_streams=limits.max_streams,
        max_files=limits.max_files,
        max_shadows=limits.max_shadows,
        max_speeches=limits.max_speeches,
        longest_text=limits.longest_text,
        largest_upload_mb=limits.largest_upload_mb,
        longest_audio_seconds=limits.longest_audio_seconds,
        decoders=limits.decoders,
        idle_seconds=limits.idle_seconds,
        resume_seconds=limits.resume_seconds,
        linger_seconds=min(Settings.linger_seconds, limits.resume_seconds),
        state_folder=replica.state_folder,
        checkpoint_seconds=replica.checkpoint_seconds,
        replica=replica.replica or random_name(),
        replicas=replica.replicas,
        resume_seats=replica.resume_seats,
        signing_key=replica.signing_key,
        drain_seconds=limits.drain_seconds,
        api_keys=(*(access.api_key or ()), *file_keys),
        admin_key=access.admin_key,
        allow_origins=tuple(network.allow_origin or ()),
        tls_certificate=network.tls_certificate,
        tls_key=network.tls_key,
        insecure=access.insecure,
        strict_commits=network.strict_commits,
        quietbench=network.quietbench,
        llm_url=agent.llm_url,
        llm_model=agent.llm_model,
        llm_key=agent.llm_key,
        llm_timeout_seconds=agent.llm_timeout,
        llm_instructions=agent.llm_instructions,
        llm_eager=agent.llm_eager,
        smart_turn=agent.smart_turn,
        polish=polish.polish,
        polish_model=polish.polish_model,
        polish_key=polish.polish_key,
        polish_timeout_seconds=polish.polish_timeout,
        traces=replica.traces,
    )


def _run(settings: "Settings", log: LogOptions, offline: bool) -> int:
    try:
        import uvicorn

        from pianissimo.serve.app import create_app
        from pianissimo.serve.shutdown import DrainingServer
        from pianissimo.serve.speech import read_voices
        from pianissimo.serve.versions.store import read_all
    except ImportError as error:
        raise MissingExtraError(
            f"the server needs packages that are not installed ({error.name}): "
            "pip install 'pianissimo[serve]'"
        ) from error
    if offline:
        _go_offline(settings)
    voices = read_voices(settings)
    if settings.llm_url is not None and not voices:
        raise MissingExtraError("an agent needs a voice: pip install 'pianissimo[tts]'")
    recognizers = read_all(settings)
    _start_log(log)
    app = create_app(settings, recognizers, voices)
    server = DrainingServer(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=log.verbose,
            ws="websockets-sansio",
            ws_max_size=LARGEST_MESSAGE_BYTES,
            timeout_graceful_shutdown=GRACE_SECONDS,
            server_header=False,
            ssl_certfile=settings.tls_certificate,
            ssl_keyfile=settings.tls_key,
        ),
        app,
    )
    say(_summary(settings, recognizers, tuple(voices)))
    # uvicorn shuts down on SIGTERM and raises the signal again when it is done.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        server.run()
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0 if server.started else UNEXPECTED


class _JsonLines(logging.Formatter):
    """One JSON object per record: time, level, logger, request, message and traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "request": getattr(record, "request", "-"),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def _start_log(log: LogOptions) -> None:
    from pianissimo.serve.request_ids import add_request_id

    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO if log.verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s [%(request)s]: %(message)s",
    )
    for handler in logging.getLogger().handlers:
        handler.addFilter(add_request_id)
        if log.log_json:
            handler.setFormatter(_JsonLines())
    for name in ("uvicorn.access", "uvicorn.error"):
        logging.getLogger(name).addFilter(_without_queries)


def _without_queries(record: logging.LogRecord) -> bool:
    """Cut queries from request lines: they can hold hotwords."""
    if isinstance(record.args, tuple):
        record.args = tuple(a.partition("?")[0] if isinstance(a, str) else a for a in record.args)
    return True


def _go_offline(settings: "Settings") -> None:
    """Keep libraries off the network, and verify downloaded models."""
    from pianissimo.serve.settings import parse_source
    from pianissimo.zoo.download import stay_offline, verify

    stay_offline()
    for text in (*settings.models, *settings.spare_models):
        verify(parse_source(text)[1])


def _summary(
    settings: "Settings", recognizers: "Mapping[str, Recognizer]", voices: tuple[str, ...]
) -> str:
    """One line: what is served, where and to whom, without keys."""
    modes = {mode for recognizer in recognizers.values() for mode in recognizer.latencies_ms}
    shown = ", ".join(map(str, sorted(modes)))
    live = f"{settings.max_streams} streams" + (f" at {shown} ms" if modes else "")
    keys = f"{len(settings.api_keys)} API keys" if settings.api_keys else "no API key needed"
    scheme = "http" if settings.tls_certificate is None else "https"
    place = f"{scheme}://{settings.host}:{settings.port}"
    if settings.wyoming_port is not None:
        place += f" and tcp://{settings.host}:{settings.wyoming_port} (Wyoming)"
    if settings.llm_model is not None:
        live += f" that {settings.llm_model} answers"
    names = ", ".join(recognizers) + (f" and the voice {', '.join(voices)}" if voices else "")
    return f"{names} on {place}: {live}, {settings.max_files} files at once, {keys}"
