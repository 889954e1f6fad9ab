"""What LlamaIndex gets of a clip, as JSON: python talk_llamaindex.py HOST:PORT CLIP.wav"""

import json
import sys

import httpx
from llama_index.core.readers.base import BaseReader
from llama_index_reader import PianissimoReader

place, clip = sys.argv[1:]
whole = PianissimoReader(f"http://{place}")
assert isinstance(whole, BaseReader)
parts = PianissimoReader(f"http://{place}", segments=True, prompt="nine")
try:
    PianissimoReader(f"http://{place}").load_data(__file__)
    refused = ""
except httpx.HTTPStatusError as error:
    refused = str(error)
documents = [[d.text, d.metadata] for d in whole.load_data([clip, clip])]
print(
    json.dumps(
        {
            "documents": documents,
            "parts": [[d.text, d.metadata] for d in parts.load_data(clip)],
            "refused": refused,
        }
    )
)
