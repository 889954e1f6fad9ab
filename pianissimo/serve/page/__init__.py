"""The web page: live captions, files, comparisons, and the way to the interfaces."""
