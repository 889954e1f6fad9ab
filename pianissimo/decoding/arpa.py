"""Moved to `pianissimo.decoding.lm.arpa`; this path works for one more release."""

import warnings

from pianissimo.decoding.lm.arpa import count_ngrams, read_arpa, write_arpa

warnings.warn(f"{__name__} is now pianissimo.decoding.lm.arpa", DeprecationWarning, stacklevel=2)

__all__ = ["count_ngrams", "read_arpa", "write_arpa"]
