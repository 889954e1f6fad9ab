"""A LlamaIndex reader that transcribes recordings on a Pianissimo server.

    python examples/llama_index_reader.py http://127.0.0.1:7860 talk.mp3

needs llama-index-core and httpx, and a running `pianissimo serve`. As a reader of
`SimpleDirectoryReader` it takes recordings among other files: `file_extractor={".mp3": reader}`.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import httpx
from llama_index.core.readers.base import BaseReader
from llama_index.core.schema import Document


class PianissimoReader(BaseReader):
    """Recordings as documents: one per recording, or with `segments` one per sentence or pause.

    The metadata have `source`, `language`, `start` and `end` in seconds. `options` are more fields
    of `POST /v1/audio/transcriptions`, such as `prompt` for hotwords. Raises httpx.HTTPStatusError
    for a recording or field that the server refuses, with its reason.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:7860",
        *,
        key: str = "any",
        model: str | None = None,
        segments: bool = False,
        timeout_seconds: float = 3600.0,
        **options: str,
    ) -> None:
        self.segments, self.timeout_seconds = segments, timeout_seconds
        self.url = f"{url.rstrip('/')}/v1/audio/transcriptions"
        self.headers = {"Authorization": f"Bearer {key}"}
        self.fields = {**options, "response_format": "verbose_json"}
        if model is not None:
            self.fields["model"] = model

    def lazy_load_data(
        self,
        file: str | Path | Sequence[str | Path],
        extra_info: dict[str, Any] | None = None,
        **_: Any,
    ) -> Iterable[Document]:
        """Transcribe one recording after the other; `extra_info` is added to the metadata."""
        paths = [file] if isinstance(file, str | Path) else file
        with httpx.Client(headers=self.headers, timeout=self.timeout_seconds) as client:
            for path in paths:
                with open(path, "rb") as audio:
                    upload = {"file": (Path(path).name, audio)}
                    response = client.post(self.url, data=self.fields, files=upload)
                if response.is_client_error or response.is_server_error:
                    reason = f"{path}: {response.text[:300]}"
                    raise httpx.HTTPStatusError(reason, request=response.request, response=response)
                found = response.json()
                whole = {"text": found["text"], "start": 0.0, "end": found["duration"]}
                for part in found["segments"] if self.segments else [whole]:
                    metadata = {"source": str(path), "language": found["language"] or None}
                    metadata |= {"start": part["start"], "end": part["end"], **(extra_info or {})}
                    yield Document(text=part["text"], metadata=metadata)


if __name__ == "__main__":
    for document in PianissimoReader(sys.argv[1], segments=True).load_data(sys.argv[2:]):
        print(f"{document.metadata['start']:.2f}\t{document.text}")
