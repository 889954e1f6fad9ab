"""Audio before the model: reading, resampling, levels, voice activity and features."""

SAMPLE_RATE = 16_000
"""The rate at which everything is recognized, in Hz."""
