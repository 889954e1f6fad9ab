"""Text to speech: voices behind one protocol."""
