"""Moved to `pianissimo.recognizers.espnet`; this path works for one more release."""

import warnings

from pianissimo.recognizers.espnet import read_espnet

warnings.warn(f"{__name__} is now pianissimo.recognizers.espnet", DeprecationWarning, stacklevel=2)

__all__ = ["read_espnet"]
