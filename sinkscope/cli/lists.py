"""Options that take several values at once: `--sinks 0 1 2 4`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def spread(words: Sequence[str], several: Iterable[str]) -> list[str]:
    """The words of a command line with `--sinks 0 1` written as `--sinks=0 --sinks=1`, as the parser wants it."""
    taking, option, spread_words = set(several), None, []
    for word in words:
        if word.startswith("--"):
            option = word if word in taking else None
            if option is None:
                spread_words.append(word)
        elif option is not None:
            spread_words.append(f"{option}={word}")
        else:
            spread_words.append(word)
    return spread_words
