"""A voice agent: turns of a speaker in, answers of a language model out as speech."""
