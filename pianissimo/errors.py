"""The exception tree: every error that the package raises on purpose.

    PianissimoError
    ├── OptionError              an option or a combination of options is invalid
    ├── AudioError               the audio cannot be used
    │   ├── AudioNotFoundError       there is no audio at that path
    │   ├── AudioDecodeError         the bytes are not audio that can be decoded
    │   └── AudioValueError          the samples decode, but their values are unusable
    ├── ModelError               the model cannot be used
    │   ├── ModelNotFoundError       no such name, folder or file, or no network to download it
    │   └── CheckpointError          the checkpoint is damaged, hostile or of an unknown format
    ├── TextError                the text cannot be spoken
    │   ├── NothingToSayError        it has no letter, digit or symbol with a reading
    │   ├── ScriptError              it is written in a script that the voice cannot read
    │   ├── MarkupError              it is SSML, which would be read aloud
    │   └── TextTooLongError         it is longer than the limit
    ├── MissingExtraError        an optional dependency is not installed
    ├── StreamError              a method of a live stream was called in the wrong order
    │   ├── BacklogError             the buffer of a live stream is full
    │   └── StateError               a saved stream cannot be resumed
    ├── EngineError              the streaming engine cannot serve
    │   └── EngineFullError          all its slots are in use
    ├── LanguageModelError       the language model of a voice agent gave no answer
    │   ├── LanguageModelUnreachableError  it cannot be reached
    │   ├── LanguageModelTimeoutError      it wrote nothing for too long
    │   └── LanguageModelReplyError        it refused, sent garbage, ended early or said nothing
    ├── ClientError              a stream of `pianissimo.client` cannot continue
    │   ├── ServerUnreachableError   there is no connection, or none for longer than the limit
    │   ├── ServerRefusedError       the server refuses the key, an option or the stream
    │   └── StreamLostError          the server lost the stream, and audio is missing to start again
    └── ManifestError            a manifest has unusable lines

A message says what happened, what was expected, and what to do. `code` is a stable identifier for
programs (JSON output, wire protocols); messages may change, codes do not.
"""

from typing import ClassVar


class PianissimoError(Exception):
    """Base class of all errors that the package raises on purpose."""

    code: ClassVar[str] = "error"


class OptionError(PianissimoError, ValueError):
    """An option, or a combination of options, is invalid."""

    code = "invalid_option"


class AudioError(PianissimoError):
    """The audio cannot be used."""

    code = "audio_unusable"


class AudioNotFoundError(AudioError):
    """No audio to read: no such file, a directory, no permission, empty standard input."""

    code = "audio_not_found"


class AudioDecodeError(AudioError):
    """The bytes cannot be decoded: not a media file, no audio track, cut off."""

    code = "audio_undecodable"


class AudioValueError(AudioError, ValueError):
    """The samples decode, but are unusable: NaN, infinity, unknown layout or rate."""

    code = "audio_invalid_values"


class ModelError(PianissimoError):
    """The model cannot be used."""

    code = "model_unusable"


class ModelNotFoundError(ModelError):
    """No such model name, folder or file, or no network to download it."""

    code = "model_not_found"


class CheckpointError(ModelError):
    """The checkpoint is damaged, hostile, incomplete or of an unknown format."""

    code = "checkpoint_invalid"


class TextError(PianissimoError, ValueError):
    """The text cannot be spoken."""

    code = "text_unusable"


class NothingToSayError(TextError):
    """The text has nothing that can be pronounced: empty, blank, only emoji or punctuation."""

    code = "text_empty"


class ScriptError(TextError):
    """The text is written in a script that the voice cannot read."""

    code = "text_script_unsupported"


class MarkupError(TextError):
    """The text is SSML; voices read plain text."""

    code = "text_markup_unsupported"


class TextTooLongError(TextError):
    """The text is longer than the limit."""

    code = "text_too_long"


class MissingExtraError(PianissimoError, ImportError):
    """An optional dependency is not installed; the message names the extra to install."""

    code = "missing_extra"


class StreamError(PianissimoError, RuntimeError):
    """A method of a live stream was called in the wrong order, for example push after finish."""

    code = "stream_state"


class BacklogError(StreamError):
    """The buffer of a live stream is full: push slower, or wait."""

    code = "backlog_full"


class StateError(StreamError, ValueError):
    """A saved stream cannot be resumed: damaged, or of another model or version."""

    code = "state_invalid"


class EngineError(PianissimoError, RuntimeError):
    """The streaming engine cannot serve: it is closed, or its worker failed."""

    code = "engine_failed"


class EngineFullError(EngineError):
    """All slots of the engine are in use."""

    code = "engine_full"


class LanguageModelError(PianissimoError):
    """The language model of a voice agent gave no answer."""

    code = "llm_failed"


class LanguageModelUnreachableError(LanguageModelError):
    """The language model cannot be reached: it is down, or its address is wrong."""

    code = "llm_unreachable"


class LanguageModelTimeoutError(LanguageModelError):
    """The language model wrote nothing for too long."""

    code = "llm_timeout"


class LanguageModelReplyError(LanguageModelError):
    """The reply of the language model is unusable: an error status, garbage, cut off, or empty."""

    code = "llm_reply"


class ClientError(PianissimoError):
    """A stream of `pianissimo.client` cannot continue."""

    code = "client_failed"


class ServerUnreachableError(ClientError):
    """There is no connection to the server: at first, or for longer than the limit later on."""

    code = "server_unreachable"


class ServerRefusedError(ClientError):
    """The server refuses the key, an option or the stream.

    `reason` is the server's own code, such as "server_full"; None if it only closed the connection.
    """

    code = "server_refused"

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason


class StreamLostError(ClientError):
    """The server lost the stream, and audio without a final text is no longer kept."""

    code = "stream_lost"


class ManifestError(PianissimoError, ValueError):
    """A manifest has unusable lines; the message lists them by number."""

    code = "manifest_invalid"
