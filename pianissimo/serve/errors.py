"""What a client is told when a request cannot be served: one shape per dialect."""

from dataclasses import dataclass, field
from typing import Any

from pianissimo.errors import (
    AudioError,
    EngineError,
    EngineFullError,
    ModelNotFoundError,
    OptionError,
    PianissimoError,
    StreamError,
)

GOING_AWAY, POLICY, TOO_BIG = 1001, 1008, 1009
FAILED, RESTARTING, FULL = 1011, 1012, 1013
"""Close codes of sockets; what is above 1010 tells a client to try again."""
RETRY_SECONDS = 1


@dataclass
class Refusal(Exception):
    """A request that is answered with an error: its HTTP status, and what is wrong."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """OpenAI's name for the class of errors that the status belongs to."""
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

    def openai(self) -> dict[str, Any]:
        """The body that OpenAI's clients expect."""
        body = {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return {"error": body}

    def deepgram(self, request_id: str) -> dict[str, Any]:
        """The body that Deepgram's clients expect."""
        code = (self.code or self.kind).upper()
        return {"err_code": code, "err_msg": self.message, "request_id": request_id}


def refusal_for(error: PianissimoError) -> Refusal:
    """How an error of ours is told to a client."""
    match error:
        case EngineFullError():
            return busy(str(error))
        case EngineError():
            return Refusal(503, str(error), error.code)
        case ModelNotFoundError():
            return Refusal(404, str(error), error.code, "model")
        case AudioError():
            return Refusal(400, str(error), error.code, "file")
        case OptionError() | StreamError():
            return Refusal(400, str(error), error.code)
        case _:
            return Refusal(500, str(error), error.code)


def busy(message: str) -> Refusal:
    """All places are taken: come back later."""
    return Refusal(429, message, "server_full", headers={"retry-after": str(RETRY_SECONDS)})


def draining() -> Refusal:
    """The server ends soon: go elsewhere."""
    return Refusal(
        503,
        "this server takes nobody new, it is about to end; try another one",
        "draining",
        headers={"retry-after": str(RETRY_SECONDS)},
    )


def restarting() -> Refusal:
    """The server ends now: a stream goes on where its state is read."""
    return Refusal(503, "the server ends; resume the stream", "restarting")
