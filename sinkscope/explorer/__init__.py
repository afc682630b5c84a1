"""The explorer: attention of one text in a notebook, and what becomes of it when keys are taken away.

explore        resolves its arguments and shows an `Explorer`
app            the widgets; `controls`, `looks`, `canvases`, `losses`, `words` and `streaming_tab` are its parts
controller     what is asked for, shown and compared, without widgets; it works alone
text_model     reads the text under a `setting`, and gives `readings`; `worker` does it off the main thread
"""

from __future__ import annotations

from sinkscope.explorer.app import Explorer
from sinkscope.explorer.opening import explore

__all__ = ["Explorer", "explore"]
