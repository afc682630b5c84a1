"""Text as it comes, token by token, in complete characters.

A character may take several tokens, and what a token spells may depend on the one before it (a space, for one). So each
is decoded together with those of the piece before, and what is new is shown once it ends in a whole character (the way
of Text Generation Inference and vLLM).
"""

from __future__ import annotations

from typing import Any

UNFINISHED = "\ufffd"  # what bytes decode to that are no character yet


class TextPieces:
    """The pieces of one text; joined, they are the decoded text, but for part of a character at its end.

    Args:
        tokenizer: of transformers; its special tokens are left out.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []  # those of the last piece, and those not shown yet
        self._shown = 0

    def add(self, token: int) -> str:
        """The characters that are complete with this token; often one word, sometimes none."""
        self._ids.append(token)
        before, text = self._decode(self._ids[: self._shown]), self._decode(self._ids)
        if len(text) <= len(before) or text.endswith(UNFINISHED):
            return ""
        self._ids = self._ids[self._shown :]
        self._shown = len(self._ids)
        return text[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
