"""How good and how fast a recognizer is."""
