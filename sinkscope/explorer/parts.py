"""What a widget is made of."""

from __future__ import annotations

import ipywidgets as w


def parts_of(widget: w.Widget) -> list[w.Widget]:
    """All widgets that a widget is made of: those inside it, and the layouts and styles of all of them."""
    found = []
    for name in widget.keys:
        value = getattr(widget, name)
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, w.Widget):
                found += [part, *parts_of(part)]
    return found
