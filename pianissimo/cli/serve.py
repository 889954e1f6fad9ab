"""`pianissimo serve`: the model behind the protocols that clients already speak."""

import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pianissimo.cli.options import DeviceOption, DtypeOption, ModelOption, VerboseOption
from pianissimo.cli.output import INTERRUPTED, UNEXPECTED, say
from pianissimo.errors import MissingExtraError

if TYPE_CHECKING:
    from pianissimo.loading import AnyRecognizer
    from pianissimo.serve.settings import Settings

LARGEST_MESSAGE_BYTES = 16 << 20
GRACE_SECONDS = 20


def serve(
    model: ModelOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    host: Annotated[
        str, typer.Option(envvar="PIANISSIMO_HOST", help="The address to listen on.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="PIANISSIMO_PORT", help="The port, 0: any.")] = 7860,
    max_streams: Annotated[
        int, typer.Option(envvar="PIANISSIMO_MAX_STREAMS", help="Sockets served at once.")
    ] = 64,
    max_files: Annotated[
        int, typer.Option(envvar="PIANISSIMO_MAX_FILES", help="Recordings transcribed at once.")
    ] = 2,
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
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            envvar="PIANISSIMO_API_KEY",
            metavar="KEY",
            help="A key that clients must send; may be repeated. Better in the environment.",
        ),
    ] = None,
    admin_key: Annotated[
        str | None,
        typer.Option(envvar="PIANISSIMO_ADMIN_KEY", metavar="KEY", help="The key for /metrics."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            envvar="PIANISSIMO_ALLOW_ORIGIN",
            metavar="ORIGIN",
            help="A web site whose pages may connect; may be repeated, * for all.",
        ),
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
    verbose: VerboseOption = False,
) -> None:
    """Serve the model: OpenAI's audio endpoints, live sockets, and numbers for Prometheus.

    SIGTERM and Ctrl-C end it: sockets are closed with code 1012, running requests are answered.
    """
    from pianissimo.serve.settings import Settings

    settings = Settings(
        model=model,
        device=device,
        dtype=dtype,
        host=host,
        port=port,
        max_streams=max_streams,
        max_files=max_files,
        largest_upload_mb=largest_upload_mb,
        longest_audio_seconds=longest_audio_seconds,
        decoders=decoders,
        idle_seconds=idle_seconds,
        resume_seconds=resume_seconds,
        linger_seconds=min(Settings.linger_seconds, resume_seconds),
        state_folder=state_folder,
        api_keys=tuple(api_key or ()),
        admin_key=admin_key,
        allow_origins=tuple(allow_origin or ()),
        insecure=insecure,
        strict_commits=strict_commits,
    )
    raise typer.Exit(_run(settings, verbose))


def _run(settings: "Settings", verbose: bool) -> int:
    try:
        import uvicorn

        from pianissimo.serve.app import create_app
    except ImportError as error:
        raise MissingExtraError(
            f"the server needs packages that are not installed ({error.name}): "
            "pip install 'pianissimo[serve]'"
        ) from error
    from pianissimo.loading import load

    recognizer = load(settings.model, device=settings.device, dtype=settings.dtype)
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(settings, recognizer),
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=verbose,
            ws="websockets-sansio",
            ws_max_size=LARGEST_MESSAGE_BYTES,
            timeout_graceful_shutdown=GRACE_SECONDS,
            server_header=False,
        )
    )
    say(_summary(settings, recognizer))
    # uvicorn ends in peace at SIGTERM, and raises it once more when all is done.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        server.run()
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0 if server.started else UNEXPECTED


def _summary(settings: "Settings", recognizer: "AnyRecognizer") -> str:
    """What is served where and to whom, without any key."""
    modes = ", ".join(map(str, recognizer.latencies_ms))
    live = f"{settings.max_streams} streams at {modes} ms" if modes else "no live streams"
    keys = f"{len(settings.api_keys)} API keys" if settings.api_keys else "no API key needed"
    place = f"http://{settings.host}:{settings.port}"
    return f"{recognizer.name} on {place}: {live}, {settings.max_files} files at once, {keys}"
