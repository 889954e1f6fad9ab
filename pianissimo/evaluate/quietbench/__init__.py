"""QuietBench: how well quiet speech is recognised, with the level and the noise fixed apart."""
