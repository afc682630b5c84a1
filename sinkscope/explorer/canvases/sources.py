"""The JavaScript and the style sheet of the canvases.

anywidget takes one module per widget as a text, and such a module cannot import a file beside it. So the files that the
widgets share are joined in front of the widget's own: all of them live in one scope, and no name is used twice.
"""

from __future__ import annotations

from importlib import resources

SHARED = ["colours.js", "stage.js", "texts.js"]
STYLE = (resources.files(__package__) / "canvases.css").read_text(encoding="utf-8")


def module(*names: str) -> str:
    """One ES module: the shared files, then the files ``names`` in this order."""
    return "\n".join((resources.files(__package__) / name).read_text(encoding="utf-8") for name in [*SHARED, *names])
