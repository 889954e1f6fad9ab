"""Other people's models behind our protocols, one file per family."""
