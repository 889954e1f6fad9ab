"""Moved to `pianissimo.recognizers.glm_asr`; this path works for one more release."""

import warnings

from pianissimo.recognizers.glm_asr import read_glm_asr

warnings.warn(f"{__name__} is now pianissimo.recognizers.glm_asr", DeprecationWarning, stacklevel=2)

__all__ = ["read_glm_asr"]
