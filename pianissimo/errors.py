"""The exception tree: every error a user can meet, one sentence each.

    PianissimoError
    ├── OptionError              an option or combination of options makes no sense
    ├── AudioError               the audio cannot be used
    │   ├── AudioNotFoundError       there is nothing to read at that place
    │   ├── AudioDecodeError         the bytes are not audio that we can decode
    │   └── AudioValueError          the samples decode, but are not usable numbers
    ├── ModelError               the model cannot be used
    │   ├── ModelNotFoundError       no such name, folder or file, or no network to fetch it
    │   └── CheckpointError          the checkpoint is damaged, hostile or of an unknown kind
    ├── MissingExtraError        an optional dependency is not installed
    ├── StreamError              a live stream was used in an illegal order
    │   ├── BacklogError             more audio was pushed than the stream may keep waiting
    │   └── StateError               a saved stream cannot be taken up again
    ├── EngineError              the streaming engine cannot serve
    │   └── EngineFullError          all its streams are in use
    └── ManifestError            a training manifest has unusable lines

A message says what happened, what was expected, and what to do about it. `code` is a stable
identifier for machines (JSON output, wire protocols); messages may be reworded, codes may not.
"""

from typing import ClassVar


class PianissimoError(Exception):
    """Base of everything this package raises on purpose."""

    code: ClassVar[str] = "error"


class OptionError(PianissimoError, ValueError):
    """An option, or a combination of options, makes no sense."""

    code = "invalid_option"


class AudioError(PianissimoError):
    """The audio cannot be used."""

    code = "audio_unusable"


class AudioNotFoundError(AudioError):
    """There is nothing to read: no such file, a directory, no permission, empty standard input."""

    code = "audio_not_found"


class AudioDecodeError(AudioError):
    """The bytes are not audio that we can decode: not a media file, no audio track, cut short."""

    code = "audio_undecodable"


class AudioValueError(AudioError, ValueError):
    """The samples decode but are not usable numbers: NaN, infinity, unknown layout or rate."""

    code = "audio_invalid_values"


class ModelError(PianissimoError):
    """The model cannot be used."""

    code = "model_unusable"


class ModelNotFoundError(ModelError):
    """No model of that name, folder or file, or no network to fetch it."""

    code = "model_not_found"


class CheckpointError(ModelError):
    """The checkpoint is damaged, hostile, incomplete or of an unknown kind."""

    code = "checkpoint_invalid"


class MissingExtraError(PianissimoError, ImportError):
    """An optional dependency is not installed; the message names the extra to install."""

    code = "missing_extra"


class StreamError(PianissimoError, RuntimeError):
    """A live stream was used in an illegal order, for example pushed after finish."""

    code = "stream_state"


class BacklogError(StreamError):
    """More audio was pushed than the stream may keep waiting: push slower, or wait."""

    code = "backlog_full"


class StateError(StreamError, ValueError):
    """A saved stream cannot be taken up again: damaged, or of another model or version."""

    code = "state_invalid"


class EngineError(PianissimoError, RuntimeError):
    """The streaming engine cannot serve: it was closed, or its worker failed."""

    code = "engine_failed"


class EngineFullError(EngineError):
    """All streams of the engine are in use."""

    code = "engine_full"


class ManifestError(PianissimoError, ValueError):
    """A training manifest has unusable lines; the message lists them by line number."""

    code = "manifest_invalid"
