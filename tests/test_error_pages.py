"""Messages that send their reader to a page of the documentation name one that is there."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from sinkscope import SinkscopeError
from sinkscope.chats import rendered_chat

ROOT = Path(__file__).parent.parent


def titles() -> set[str]:
    pages = [path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("*.md")]
    return {page.splitlines()[0].removeprefix("# ") for page in pages if page.startswith("# ")}


def named() -> dict[str, str]:
    """The titles that messages name, each with a file that does."""
    found = {}
    for path in sorted((ROOT / "sinkscope").rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "SinkscopeError":
                pages = [each.value for each in call.keywords if each.arg == "page"]
                pages = [] if path.name == "settings_file.py" else pages  # it hands on what it is given
            elif isinstance(call, ast.Call) and getattr(call.func, "id", "") == "read_settings":
                pages = call.args[-1:]
            else:
                continue
            assert all(isinstance(each, ast.Constant) for each in pages), path
            found |= {each.value: str(path) for each in pages if isinstance(each, ast.Constant)}
    return found


@pytest.mark.slow
def test_the_pages_that_messages_name_are_there():
    assert len(named()) >= 8
    assert {title: path for title, path in named().items() if title not in titles()} == {}


def test_a_message_names_its_page_also_when_it_is_cut():
    said = str(SinkscopeError("too long " * 200, page="A chat"))
    assert "..." in said and said.endswith(' The documentation tells more, in "A chat".')
    assert str(SinkscopeError("a\n  line")) == "a line"
    with pytest.raises(
        SinkscopeError, match=r'set tokenizer\.chat_template\. The documentation tells more, in "A chat"\.$'
    ):
        rendered_chat(type("Plain", (), {"chat_template": None})(), [{"role": "user", "content": "a"}])
