"""From token ids to text, words, sentences and subtitle files."""
