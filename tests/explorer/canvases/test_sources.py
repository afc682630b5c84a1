"""The joined JavaScript of the canvases."""

from __future__ import annotations

import re
from collections import Counter
from importlib import resources

import pytest

from sinkscope.explorer.canvases import Atlas, Explained, Finder, HeadMap, Lines, Losses, Message, TokenText

FILES = [path for path in resources.files("sinkscope.explorer.canvases").iterdir() if path.name.endswith(".js")]


@pytest.mark.parametrize("widget", [Atlas, Explained, Finder, HeadMap, Lines, Losses, TokenText])
def test_no_name_is_declared_twice_in_a_module_that_is_joined(widget):
    declared = re.findall(r"^(?:function|const|let) (\w+)", str(widget._esm), flags=re.MULTILINE)
    assert {"lifetime", "visible", "frameTable"} <= set(declared)
    assert [name for name, count in Counter(declared).items() if count > 1] == []
    assert str(widget._esm).count("export default") == 1


def test_the_kinds_of_messages_are_declared_in_python_and_javascript_names_no_others():
    sources = "".join(path.read_text(encoding="utf-8") for path in FILES)
    assert set(re.findall(r"MESSAGES\.(\w+)", sources)) == {each.name for each in Message}
    assert not re.search(r"""kind\W+["']""", sources)
    assert 'const MESSAGES = Object.freeze({"HOVER": "hover", "COPY": "copy"});\n' in str(HeadMap._esm)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_canvas_reads_text_as_html_or_asks_the_network(path):
    source = path.read_text(encoding="utf-8")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|fetch\(|https?:|import ", source
    )


def test_the_style_sheet_asks_the_network_for_nothing():
    assert not re.search(r"url\(|@import", str(Atlas._css))
