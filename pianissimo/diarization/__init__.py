"""Who speaks when: sources of speaker turns, for recordings and live streams."""
