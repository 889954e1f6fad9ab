"""The server: the engine and the recogniser behind the protocols that clients already speak."""
