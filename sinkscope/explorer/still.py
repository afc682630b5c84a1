"""What the explorer leaves in a notebook for readers without a kernel."""

from __future__ import annotations

import base64
import io
from html import escape

from matplotlib.figure import Figure

from sinkscope.errors import SinkscopeError
from sinkscope.explorer.controller import Controller

NEEDS_KERNEL = "The explorer of sinkscope is here while a kernel runs: run this cell to have it."


def png(figure: Figure) -> bytes:
    """A figure as a PNG file."""
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=110)
    return target.getvalue()


def still_picture(controller: Controller) -> str:
    """HTML: the view as it is now, in a fold, with the setting it belongs to; a sentence where there is none yet."""
    from sinkscope.explorer.saving import view_record
    from sinkscope.figures import explored

    try:
        picture = png(explored(view_record(controller)))
    except SinkscopeError as error:
        return f"<p>{escape(NEEDS_KERNEL)} ({escape(str(error))})</p>"
    caption, data = escape(controller.caption), base64.b64encode(picture).decode("ascii")
    return (
        f"<details><summary>A still picture of the explorer, for reading without a kernel: {caption}</summary>"
        f'<img alt="attention map and losses: {caption}" style="max-width:100%" src="data:image/png;base64,{data}">'
        "</details>"
    )
