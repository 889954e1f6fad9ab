"""Audio before the model: reading, resampling, levels, voice activity and features."""
