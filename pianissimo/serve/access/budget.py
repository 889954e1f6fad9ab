"""Token buckets: how many messages and commands a client may send in a second."""

import time


class Budget:
    """Tokens flow in at `per_second`, up to `burst`; each message or command spends one.

    A client that spends more is slowed down, not disconnected: its next message is read later.
    """

    def __init__(self, per_second: float, burst: float) -> None:
        self.per_second, self.burst = per_second, burst
        self._tokens, self._updated = burst, time.monotonic()

    def spend(self, tokens: float = 1.0) -> float:
        """Spend tokens; returns the seconds to wait until they are covered, 0 if they are."""
        now = time.monotonic()
        earned = (now - self._updated) * self.per_second
        self._tokens = min(self.burst, self._tokens + earned) - tokens
        self._updated = now
        return max(0.0, -self._tokens / self.per_second)
