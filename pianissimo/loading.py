"""Moved to `pianissimo.zoo.load`; this path works for one more release."""

import warnings

from pianissimo.zoo.load import load

warnings.warn(f"{__name__} is now pianissimo.zoo.load", DeprecationWarning, stacklevel=2)

__all__ = ["load"]
