"""What was probably meant by a misspelt name."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(word: object, names: Iterable[str]) -> str:
    """Return "; did you mean 'NAME'?", to end a message with, or nothing where no name is near or one is right."""
    close = get_close_matches(str(word), list(names), n=1)
    return f"; did you mean {close[0]!r}?" if close and close[0] != word else ""
