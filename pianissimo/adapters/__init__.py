"""Moved to `pianissimo.recognizers`; the paths here work for one more release."""
