"""An async client of `pianissimo serve` that loses nothing when a connection or a server breaks.

    async with pianissimo.client.connect("ws://127.0.0.1:7860") as stream:
        await stream.send(samples)
        await stream.finish()
        async for event in stream:
            print(event.type, event.text)

It needs the extra `client`, and loads no PyTorch.
"""

from pianissimo.client.stream import ClientStream as ClientStream
from pianissimo.client.stream import StartFields as StartFields
from pianissimo.client.stream import connect as connect
