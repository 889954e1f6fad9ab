"""`pianissimo serve`: the model behind the protocols that clients already speak."""

import json
import logging
import signal
import sys
import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pianissimo.cli.options import DeviceOption, DtypeOption, GainOption, VerboseOption
from pianissimo.cli.output import INTERRUPTED, UNEXPECTED, say
from pianissimo.errors import MissingExtraError, OptionError

if TYPE_CHECKING:
    from pianissimo.protocols import Recognizer
    from pianissimo.serve.settings import Settings

LARGEST_MESSAGE_BYTES = 16 << 20
GRACE_SECONDS = 20


def _read_settings(context: typer.Context, path: Path | None) -> Path | None:
    """Values of a file where neither the command line nor the environment has them."""
    if path is None:
        return None
    try:
        given = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"the settings in {path} cannot be read: {error}") from error
    found = {name.replace("-", "_"): value for name, value in given.items()}
    known = {param.name for param in context.command.params} - {"settings", "help"}
    for name, value in found.items():
        if name not in known or isinstance(value, dict):
            raise OptionError(
                f"{name!r} in {path} is no option of `pianissimo serve`: write them as "
                "max-streams = 64, without tables"
            )
    context.default_map = found
    return path


def serve(
    settings: Annotated[
        Path | None,
        typer.Option(
            envvar="PIANISSIMO_SETTINGS",
            is_eager=True,
            callback=_read_settings,
            help="TOML: any of these options, where they are not given otherwise.",
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            envvar="PIANISSIMO_MODEL",
            metavar="[NAME=]MODEL",
            help="A name from `models list`, a model folder or a .nemo file; may be repeated, the "
            "first is the default [default: embedded-en].",
        ),
    ] = None,
    spare_model: Annotated[
        list[str] | None,
        typer.Option(
            envvar="PIANISSIMO_SPARE_MODEL",
            metavar="NAME=MODEL",
            help="A model that can be loaded later by /admin; may be repeated.",
        ),
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    gain: GainOption = None,
    host: Annotated[
        str, typer.Option(envvar="PIANISSIMO_HOST", help="The address to listen on.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="PIANISSIMO_PORT", help="The port, 0: any.")] = 7860,
    wyoming_port: Annotated[
        int | None,
        typer.Option(
            envvar="PIANISSIMO_WYOMING_PORT",
            help="Speak Wyoming, for Home Assistant, on this port too; off by default.",
        ),
    ] = None,
    max_streams: Annotated[
        int, typer.Option(envvar="PIANISSIMO_MAX_STREAMS", help="Sockets served at once.")
    ] = 64,
    max_files: Annotated[
        int, typer.Option(envvar="PIANISSIMO_MAX_FILES", help="Recordings transcribed at once.")
    ] = 2,
    max_shadows: Annotated[
        int,
        typer.Option(envvar="PIANISSIMO_MAX_SHADOWS", help="Streams that a shadow hears at once."),
    ] = 8,
    largest_upload_mb: Annotated[
        float, typer.Option(envvar="PIANISSIMO_LARGEST_UPLOAD_MB", help="Largest upload in MB.")
    ] = 512.0,
    longest_audio_seconds: Annotated[
        float,
        typer.Option(envvar="PIANISSIMO_LONGEST_AUDIO_SECONDS", help="Longest recording."),
    ] = 4 * 3600.0,
    decoders: Annotated[
        int, typer.Option(envvar="PIANISSIMO_DECODERS", help="Processes that decode recordings.")
    ] = 2,
    idle_seconds: Annotated[
        float,
        typer.Option(envvar="PIANISSIMO_IDLE_SECONDS", help="When a silent socket is closed."),
    ] = 300.0,
    resume_seconds: Annotated[
        float,
        typer.Option(
            envvar="PIANISSIMO_RESUME_SECONDS", help="How long a cut /v1/stream can be resumed."
        ),
    ] = 120.0,
    state_folder: Annotated[
        Path | None,
        typer.Option(
            envvar="PIANISSIMO_STATE_FOLDER",
            help="Where cut streams survive a restart; they hold what people said.",
        ),
    ] = None,
    drain_seconds: Annotated[
        float,
        typer.Option(
            envvar="PIANISSIMO_DRAIN_SECONDS", help="How long streams may go on after SIGTERM."
        ),
    ] = 10.0,
    offline: Annotated[
        bool,
        typer.Option(
            envvar="PIANISSIMO_OFFLINE",
            help="Use no network, and check pulled models against their lock files.",
        ),
    ] = False,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            envvar="PIANISSIMO_API_KEY",
            metavar="KEY",
            help="A key that clients must send; may be repeated. Better in the environment.",
        ),
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(
            envvar="PIANISSIMO_KEY_FILE",
            help="TOML: keys with names and limits, see docs/operations.md.",
        ),
    ] = None,
    admin_key: Annotated[
        str | None,
        typer.Option(
            envvar="PIANISSIMO_ADMIN_KEY", metavar="KEY", help="The key for /metrics and /admin."
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            envvar="PIANISSIMO_ALLOW_ORIGIN",
            metavar="ORIGIN",
            help="A web site whose pages may connect; may be repeated, * for all.",
        ),
    ] = None,
    tls_certificate: Annotated[
        Path | None,
        typer.Option(envvar="PIANISSIMO_TLS_CERTIFICATE", help="PEM file: speak TLS with it."),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(envvar="PIANISSIMO_TLS_KEY", help="PEM file: the certificate's key."),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(envvar="PIANISSIMO_INSECURE", help="Let other machines in without a key."),
    ] = False,
    strict_commits: Annotated[
        bool,
        typer.Option(
            envvar="PIANISSIMO_STRICT_COMMITS",
            help="Answer the commit of an empty realtime buffer with an error, as OpenAI does.",
        ),
    ] = False,
    quietbench: Annotated[
        Path | None,
        typer.Option(
            envvar="PIANISSIMO_QUIETBENCH",
            help="The folder of a QuietBench run, for the page to show.",
        ),
    ] = None,
    log_json: Annotated[
        bool,
        typer.Option(envvar="PIANISSIMO_LOG_JSON", help="Log objects of JSON, one per line."),
    ] = False,
    verbose: VerboseOption = False,
) -> None:
    """Serve the model: OpenAI's audio endpoints, live sockets, and numbers for Prometheus.

    SIGTERM and Ctrl-C end it: nobody new is taken, streams have some seconds to end, then their
    sockets are closed with code 1012 and their state is saved; a second signal ends it at once.
    """
    from pianissimo.serve.access.keys import read_keys
    from pianissimo.serve.settings import Settings

    asked = Settings(
        models=tuple(model or ()),
        spare_models=tuple(spare_model or ()),
        device=device,
        dtype=dtype,
        gain=gain,
        host=host,
        port=port,
        wyoming_port=wyoming_port,
        max_streams=max_streams,
        max_files=max_files,
        max_shadows=max_shadows,
        largest_upload_mb=largest_upload_mb,
        longest_audio_seconds=longest_audio_seconds,
        decoders=decoders,
        idle_seconds=idle_seconds,
        resume_seconds=resume_seconds,
        linger_seconds=min(Settings.linger_seconds, resume_seconds),
        state_folder=state_folder,
        drain_seconds=drain_seconds,
        api_keys=(*(api_key or ()), *(read_keys(key_file) if key_file else ())),
        admin_key=admin_key,
        allow_origins=tuple(allow_origin or ()),
        tls_certificate=tls_certificate,
        tls_key=tls_key,
        insecure=insecure,
        strict_commits=strict_commits,
        quietbench=quietbench,
    )
    raise typer.Exit(_run(asked, verbose, log_json, offline))


def _run(settings: "Settings", verbose: bool, log_json: bool, offline: bool) -> int:
    try:
        import uvicorn

        from pianissimo.serve.app import create_app
        from pianissimo.serve.shutdown import DrainingServer
        from pianissimo.serve.versions.store import read_all
    except ImportError as error:
        raise MissingExtraError(
            f"the server needs packages that are not installed ({error.name}): "
            "pip install 'pianissimo[serve]'"
        ) from error
    if offline:
        _go_offline(settings)
    recognizers = read_all(settings)
    _begin_log(verbose, log_json)
    app = create_app(settings, recognizers)
    server = DrainingServer(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=verbose,
            ws="websockets-sansio",
            ws_max_size=LARGEST_MESSAGE_BYTES,
            timeout_graceful_shutdown=GRACE_SECONDS,
            server_header=False,
            ssl_certfile=settings.tls_certificate,
            ssl_keyfile=settings.tls_key,
        ),
        app,
    )
    say(_summary(settings, recognizers))
    # uvicorn ends in peace at SIGTERM, and raises it once more when all is done.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        server.run()
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0 if server.started else UNEXPECTED


class _JsonLines(logging.Formatter):
    """One object per record: time, level, logger, message, and the trace of an exception."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def _begin_log(verbose: bool, as_json: bool) -> None:
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    if as_json:
        for handler in logging.getLogger().handlers:
            handler.setFormatter(_JsonLines())
    for name in ("uvicorn.access", "uvicorn.error"):
        logging.getLogger(name).addFilter(_without_queries)


def _without_queries(record: logging.LogRecord) -> bool:
    """Queries may name what will be said: a line per request ends before them."""
    if isinstance(record.args, tuple):
        record.args = tuple(a.partition("?")[0] if isinstance(a, str) else a for a in record.args)
    return True


def _go_offline(settings: "Settings") -> None:
    """No network for libraries that would use it; models that were pulled are as they were then."""
    from pianissimo.serve.settings import parse_source
    from pianissimo.zoo.download import stay_offline, verify

    stay_offline()
    for text in (*settings.models, *settings.spare_models):
        verify(parse_source(text)[1])


def _summary(settings: "Settings", recognizers: "Mapping[str, Recognizer]") -> str:
    """What is served where and to whom, without any key."""
    modes = {mode for recognizer in recognizers.values() for mode in recognizer.latencies_ms}
    shown = ", ".join(map(str, sorted(modes)))
    live = f"{settings.max_streams} streams" + (f" at {shown} ms" if modes else "")
    keys = f"{len(settings.api_keys)} API keys" if settings.api_keys else "no API key needed"
    scheme = "http" if settings.tls_certificate is None else "https"
    place = f"{scheme}://{settings.host}:{settings.port}"
    if settings.wyoming_port is not None:
        place += f" and tcp://{settings.host}:{settings.wyoming_port} (Wyoming)"
    return (
        f"{', '.join(recognizers)} on {place}: {live}, {settings.max_files} files at once, {keys}"
    )
