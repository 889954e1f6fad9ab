"""Errors of requests, in the shape of each dialect."""

from dataclasses import dataclass, field

from pianissimo.errors import (
    AudioError,
    EngineError,
    EngineFullError,
    ModelNotFoundError,
    OptionError,
    PianissimoError,
    StreamError,
    TextError,
)

GOING_AWAY, POLICY, TOO_BIG = 1001, 1008, 1009
FAILED, RESTARTING, FULL = 1011, 1012, 1013
"""Close codes of sockets; those above 1010 tell a client to retry."""
RETRY_SECONDS = 1
STORAGE_RETRY_SECONDS = 30


@dataclass
class Refusal(Exception):
    """An error response: its HTTP status, message and stable code."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """OpenAI's name for the class of the status."""
        if self.status >= 500:
            return "server_error"
        return {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(
            self.status, "invalid_request_error"
        )

    @property
    def close_code(self) -> int:
        """The close code of a socket that ends for this reason."""
        if self.code == "restarting":
            return RESTARTING
        if self.status in (429, 503):
            return FULL
        if self.status == 408:
            return GOING_AWAY
        if self.status == 413:
            return TOO_BIG
        return FAILED if self.status >= 500 else POLICY

    def body(self) -> dict[str, object]:
        """The error object that OpenAI's clients expect."""
        return {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }

    def openai(self) -> dict[str, object]:
        """The body of a response to OpenAI's clients."""
        return {"error": self.body()}

    def deepgram(self, request_id: str) -> dict[str, object]:
        """The body of a response to Deepgram's clients."""
        code = (self.code or self.kind).upper()
        return {"err_code": code, "err_msg": self.message, "request_id": request_id}


def refusal_for(error: PianissimoError) -> Refusal:
    """The response to an error of the package."""
    match error:
        case EngineFullError():
            return busy(str(error))
        case EngineError():
            return Refusal(503, str(error), error.code)
        case ModelNotFoundError():
            return Refusal(404, str(error), error.code, "model")
        case TextError():
            return Refusal(400, str(error), error.code, "input")
        case AudioError():
            return Refusal(400, str(error), error.code, "file")
        case OptionError() | StreamError():
            return Refusal(400, str(error), error.code)
        case _:
            return Refusal(500, str(error), error.code)


def busy(message: str) -> Refusal:
    """The response at a limit of capacity."""
    return Refusal(429, message, "server_full", headers={"retry-after": str(RETRY_SECONDS)})


def draining() -> Refusal:
    """The response while the server drains."""
    return Refusal(
        503,
        "Server is draining; retry on another instance.",
        "draining",
        headers={"retry-after": str(RETRY_SECONDS)},
    )


def storage_full() -> Refusal:
    """The response to an upload that does not fit on the disk."""
    return Refusal(
        507,
        "the server has no disk space for this upload; try again later",
        "storage_full",
        headers={"retry-after": str(STORAGE_RETRY_SECONDS), "connection": "close"},
    )


def restarting() -> Refusal:
    """The response when the server ends; an instance with the state can resume the stream."""
    return Refusal(503, "Server is restarting; resume the stream.", "restarting")
