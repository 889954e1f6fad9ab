"""The written text of a language model as it is spoken: without Markdown, links, code and emoji."""

import re
import unicodedata

CODE_NOTICE = "I have left out the code."
"""Said once in place of the code of an answer."""
_FENCE = re.compile(r"^\s*(```|~~~)")
_LINE_MARK = re.compile(r"^\s*(#{1,6}\s+|>\s?|[-*+•]\s+|\|)")
_RULE = re.compile(r"^\s*([-*_]\s*){3,}$|^[\s|:-]+$")
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_ADDRESS = re.compile(r"https?://(?:www\.)?([^\s/]+)\S*")
_EMPHASIS = re.compile(r"(\*{1,3}|_{2,3}|~~|`+)(?=\S)|(?<=\S)(\*{1,3}|_{2,3}|~~|`+)")
_THOUGHTS = re.compile(r"</?think(ing)?>", re.I)


class Spoken:
    """Cleans the pieces of one answer in order; a block of code may span several of them."""

    def __init__(self) -> None:
        self._fenced = self._thinking = self._noticed = False

    def clean(self, piece: str) -> str:
        """What of a piece is spoken, "" if nothing."""
        if _FENCE.match(piece):
            self._fenced = not self._fenced
            notice = CODE_NOTICE if self._fenced and not self._noticed else ""
            self._noticed = True
            return notice
        if self._fenced:
            return ""
        piece = self._without_thoughts(piece)
        if _RULE.match(piece):
            return ""
        text = _LINE_MARK.sub("", piece)
        text = _ADDRESS.sub(lambda found: found[1], _LINK.sub(r"\1", text))
        text = _EMPHASIS.sub("", text.replace("|", ","))
        text = "".join(c for c in text if not _is_emoji(c))
        return " ".join(text.split())

    def _without_thoughts(self, piece: str) -> str:
        """Some models write their reasoning into the text, between tags."""
        kept, start = [], 0
        for tag in _THOUGHTS.finditer(piece):
            if not self._thinking:
                kept.append(piece[start : tag.start()])
            self._thinking = not tag[0].startswith("</")
            start = tag.end()
        if not self._thinking:
            kept.append(piece[start:])
        return "".join(kept)


def _is_emoji(character: str) -> bool:
    return unicodedata.category(character) in ("So", "Sk", "Cs", "Co", "Cn") or character in "‍️"
