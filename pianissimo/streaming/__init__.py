"""Live recognition: sessions that take audio as it comes and say what became known."""
