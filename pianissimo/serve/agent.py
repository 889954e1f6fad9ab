"""What all spoken conversations of a server share: language model, voice and turn detection."""

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from pianissimo.agent.agent import INSTRUCTIONS
from pianissimo.agent.answer import APOLOGY
from pianissimo.agent.chat import ChatModel, ChatOptions
from pianissimo.agent.smart_turn import SmartTurnModel, find_model
from pianissimo.errors import OptionError

if TYPE_CHECKING:
    from pianissimo.protocols import Synthesizer
    from pianissimo.serve.settings import Settings
    from pianissimo.serve.speech import Voices

VOICE_THREADS = 2
"""Threads that synthesize; a sentence takes about 50 ms of one."""


class AgentService:
    """Created with the server if it has a language model, and closed with it.

    `voice` is the default one of `voices`. Raises what `SmartTurnModel` raises, and OptionError for
    unusable settings.
    """

    def __init__(self, settings: "Settings", voices: "Voices", voice: "Synthesizer") -> None:
        if settings.llm_url is None or settings.llm_model is None:
            raise OptionError("an agent needs the address and the name of a language model")
        chat = ChatOptions(
            settings.llm_url, settings.llm_model, settings.llm_key, settings.llm_timeout_seconds
        )
        self.chat, self.model = ChatModel(chat), chat.model
        self.voices, self.voice = voices, voice
        self.threads = ThreadPoolExecutor(VOICE_THREADS, "pianissimo-voice")
        self.instructions = settings.llm_instructions or INSTRUCTIONS
        self.apology = APOLOGY
        # Tokens of a discarded answer cost nothing on this machine.
        self.eager = chat.loopback if settings.llm_eager is None else settings.llm_eager
        self.smart_turn: SmartTurnModel | None = None
        if settings.smart_turn is not None:
            self.smart_turn = SmartTurnModel(find_model(settings.smart_turn))

    async def close(self) -> None:
        await self.chat.close()
        self.threads.shutdown(wait=False, cancel_futures=True)
