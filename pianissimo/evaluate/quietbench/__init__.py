"""QuietBench: how well quiet speech is recognized, with the level and the noise fixed apart."""
