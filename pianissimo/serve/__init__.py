"""The server: the engine and the recognizer behind the protocols that clients already speak."""
