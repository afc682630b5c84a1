"""The explorer: attention of one text in a notebook, and what becomes of it when keys are taken away.

launch          `explore`: from a model and a text, or a saved record, to an `Explorer`
app             the widgets together: `controls` that ask, a `display` with `canvases`, a tab for `streaming`
controller      what is asked for and shown, without widgets; it works alone
comparing       what stands beside it; `history` remembers settings, `state` is the view as a short text
configuration   what can be asked for, one entry for each control and each policy
text_model      reads the text under a configuration; `background` does it off the main thread
results         what comes of that, maps of single heads among it; `pixels` makes tiles and thumbnails of them
page            one HTML file that shows all of it without a kernel, for several configurations
saving          what is kept: figure, record, code, and a picture in the notebook; `tables` are CSV
"""

from __future__ import annotations

from sinkscope.explorer.app import Explorer
from sinkscope.explorer.launch import explore

__all__ = ["Explorer", "explore"]
