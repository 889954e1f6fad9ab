"""The web page: live captions, files, comparisons, and the way to the interfaces."""

from pianissimo.serve.page.routes import router

__all__ = ["router"]
