"""A button that writes the view into a folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from html import escape
from pathlib import Path

import ipywidgets as w

from sinkscope.errors import SinkscopeError


class SaveBar(w.HBox):
    """Where to save, the button, and what came of it.

    Args:
        save: writes the view into a folder and gives the files.
    """

    def __init__(self, save: Callable[[str | os.PathLike[str]], list[Path]]) -> None:
        self._save = save
        self.folder = w.Text(value="explored", description="folder", layout={"width": "220px"})
        self.button = w.Button(description="save view", tooltip="figure, record and code", layout={"width": "100px"})
        self.said = w.HTML()
        self.button.on_click(self._clicked)
        super().__init__([self.folder, self.button, self.said])

    def _clicked(self, _: w.Button) -> None:
        try:
            files = self._save(self.folder.value or ".")
        except SinkscopeError as error:
            self.said.value = f"<b role='alert'>{escape(str(error))}</b>"
            return
        self.said.value = "saved " + ", ".join(escape(str(file)) for file in files)
