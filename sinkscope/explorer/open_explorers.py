"""Which explorers are open: running a cell again takes the place of the one it made before."""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

_OPEN: WeakValueDictionary[Any, Any] = WeakValueDictionary()


def take_the_place(app: Any) -> None:
    """Close the explorer that the same cell made before; outside cells that have names, the last one of all."""
    place = _cell()
    before = _OPEN.pop(place, None)
    if before is not None:
        before.close()
    _OPEN[place] = app


def _cell() -> Any:
    """The name of the cell that runs, as JupyterLab, Notebook and VS Code tell it; None where there is none."""
    try:
        from IPython import get_ipython

        told = get_ipython().kernel.get_parent()["metadata"]
    except (ImportError, AttributeError, KeyError, TypeError):
        return None
    cell = told.get("cellId") or told.get("cell_id")
    return cell if isinstance(cell, str) else None
