"""From token ids to text, words, sentences and subtitle files."""

WORD_START = "\u2581"
"""Begins each piece of a tokenizer that begins a word, as SentencePiece writes it."""
