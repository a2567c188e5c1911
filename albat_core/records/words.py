"""Words of a text, in scripts with spaces between them and without."""

import re
import unicodedata

# Thai, Lao, Myanmar, Khmer; Kana; Han: written without spaces
_DENSE = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff"
    r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[^\W{_DENSE}]+|(?=\w)[{_DENSE}]")
_PIECE = re.compile(rf"\s*(?:[^\s{_DENSE}]+|[{_DENSE}])")


def words_of(text: str) -> list[str]:
    r"""Return a text's words: runs of ``\w`` without case, in Unicode's compatible form (NFKC).

    What differs in typography or punctuation alone has the same words. Of scripts that are written
    without spaces each character is a word.
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def pieces_of(text: str) -> list[str]:
    """Return what a text may be cut between: its words as they stand, with the space before them.

    Joined they are the text, but for white space at its end.
    """
    return _PIECE.findall(text)
