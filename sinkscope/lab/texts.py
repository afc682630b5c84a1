"""The text that the experiments take their characters from."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np

from sinkscope.errors import SinkscopeError
from sinkscope.texts import read_text


@dataclass(frozen=True)
class Text:
    """A text and what to call it."""

    name: str
    characters: str

    @classmethod
    def of(cls, source: str | os.PathLike[str] | None, text: str | None) -> Text:
        """The text itself where it is given, otherwise that of a source, as `read_text` takes it.

        Raises:
            SinkscopeError: both were given, a source that cannot be read, or nothing but white space.
        """
        if text is None:
            name = "King James Bible (demo text)" if source is None else os.fspath(source)
            return cls(name if name.startswith("hf:") else PurePath(name).name, read_text(source))
        if source is not None:
            raise SinkscopeError("Both source and text were given: give one of them.")
        if not text.strip():
            raise SinkscopeError("text= holds nothing but white space: give one with characters to learn from.")
        return cls("text of the caller", text)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.characters.encode("utf-8", "surrogatepass")).hexdigest()

    def encoded(self, most: int) -> tuple[str, np.ndarray]:
        """Its `most` most frequent characters, most frequent first, and the text written in them alone.

        Returns:
            The characters, and for each character of the text that is among them its place there [character].
        """
        codes = np.frombuffer(self.characters.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        known, inverse, counts = np.unique(codes, return_inverse=True, return_counts=True)
        order = np.argsort(-counts, kind="stable")[:most]
        place = np.full(len(known), -1)
        place[order] = np.arange(len(order))
        encoded = place[inverse]
        return "".join(chr(code) for code in known[order]), encoded[encoded >= 0]
