"""A LangChain document loader that transcribes recordings on a Pianissimo server.

    python examples/langchain_loader.py http://127.0.0.1:7860 talk.mp3

needs langchain-core and httpx, and a running `pianissimo serve`.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
from langchain_core.document_loaders import BaseLoader
from langchain_core.documents import Document


class PianissimoLoader(BaseLoader):
    """Recordings as documents: one per recording, or with `segments` one per sentence or pause.

    The metadata have `source`, `language`, `start` and `end` in seconds. `options` are more fields
    of `POST /v1/audio/transcriptions`, such as `prompt` for hotwords. Raises httpx.HTTPStatusError
    for a recording or field that the server refuses, with its reason.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        url: str = "http://127.0.0.1:7860",
        *,
        key: str = "any",
        model: str | None = None,
        segments: bool = False,
        timeout_seconds: float = 3600.0,
        **options: str,
    ) -> None:
        self.paths, self.segments, self.timeout_seconds = paths, segments, timeout_seconds
        self.url = f"{url.rstrip('/')}/v1/audio/transcriptions"
        self.headers = {"Authorization": f"Bearer {key}"}
        self.fields = {**options, "response_format": "verbose_json"}
        if model is not None:
            self.fields["model"] = model

    def lazy_load(self) -> Iterator[Document]:
        """Transcribe one recording after the other, as documents are asked for."""
        with httpx.Client(headers=self.headers, timeout=self.timeout_seconds) as client:
            for path in self.paths:
                with open(path, "rb") as file:
                    upload = {"file": (Path(path).name, file)}
                    response = client.post(self.url, data=self.fields, files=upload)
                if response.is_client_error or response.is_server_error:
                    reason = f"{path}: {response.text[:300]}"
                    raise httpx.HTTPStatusError(reason, request=response.request, response=response)
                yield from self._documents(str(path), response.json())

    def _documents(self, source: str, found: dict) -> Iterator[Document]:
        whole = {"text": found["text"], "start": 0.0, "end": found["duration"]}
        for part in found["segments"] if self.segments else [whole]:
            metadata = {"source": source, "language": found["language"] or None}
            metadata |= {"start": part["start"], "end": part["end"]}
            yield Document(page_content=part["text"], metadata=metadata)


if __name__ == "__main__":
    for document in PianissimoLoader(sys.argv[2:], sys.argv[1], segments=True).lazy_load():
        print(f"{document.metadata['start']:.2f}\t{document.page_content}")
