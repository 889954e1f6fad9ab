"""What LangChain gets of a clip, as JSON: python talk_langchain.py HOST:PORT CLIP.wav"""

import json
import sys

import httpx
from langchain_core.document_loaders import BaseLoader
from langchain_loader import PianissimoLoader

place, clip = sys.argv[1:]
whole = PianissimoLoader([clip, clip], f"http://{place}")
assert isinstance(whole, BaseLoader)
parts = PianissimoLoader([clip], f"http://{place}", segments=True, prompt="nine")
try:
    PianissimoLoader([__file__], f"http://{place}").load()
    refused = ""
except httpx.HTTPStatusError as error:
    refused = str(error)
documents = [[d.page_content, d.metadata] for d in whole.load()]
print(
    json.dumps(
        {
            "documents": documents,
            "parts": [[d.page_content, d.metadata] for d in parts.load()],
            "refused": refused,
        }
    )
)
