"""What the explorer draws in the browser: three widgets whose colours, limits and zoom live in JavaScript."""

from sinkscope.explorer.canvases.atlas import Atlas
from sinkscope.explorer.canvases.head_map import HeadMap
from sinkscope.explorer.canvases.token_text import TokenText

__all__ = ["Atlas", "HeadMap", "TokenText"]
