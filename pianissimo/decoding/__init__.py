"""Search: from encoder frames to tokens with times and confidences."""
