"""Models and texts: where they come from, and how they become a model, a tokenizer and token ids.

    model, tokenizer = load()              # the demo model, or a hub id, a directory, a .gguf file
    ids = read_tokens(tokenizer)           # the demo text, or a file, or "hf:..."; LongTensor [1, T]

Importing this package imports neither torch nor transformers.
"""

from __future__ import annotations

from sinkscope.texts.sources import read_text
from sinkscope.texts.tokens import read_tokens, sequences

__all__ = ["read_text", "read_tokens", "sequences"]
