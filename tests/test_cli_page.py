"""`sinkscope page`: the explorer as a file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.fuzz import world
from tests.test_cli import call


@pytest.mark.slow
def test_a_model_and_a_text_become_a_page(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(world.PROSE, encoding="utf-8")
    words = [str(world.saved_model()), "--text", "text.txt", "--length", "24", "--windows", "8", "--sinks", "0", "2"]
    code, out, _ = call(monkeypatch, capsys, "page", *words, "--out", "a/sinks.html")
    assert (code, out.strip()) == (0, "a/sinks.html")
    about = re.search(r'id="about">(.*?)</script>', Path("a/sinks.html").read_text(encoding="utf-8"), re.S)[1]
    assert [each["name"] for each in json.loads(about)["settings"]] == ["dense", "window 8", "sinks 2+8"]
    assert len(json.loads(about)["tokens"]) == 24


@pytest.mark.slow
def test_what_no_page_can_be_is_one_sentence_and_no_file(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(world.PROSE, encoding="utf-8")
    words = [str(world.saved_model()), "--text", "text.txt", "--length", "24", "--windows", "8", "--sinks", "0"]
    code, _, err = call(monkeypatch, capsys, "page", *words, "--megabytes", "0.01")
    assert code == 2 and "no page was written" in err and [each.name for each in tmp_path.iterdir()] == ["text.txt"]
    code, _, err = call(monkeypatch, capsys, "page", *words, "--out", "sinks.pdf")
    assert code == 2 and "ends in .html" in err and [each.name for each in tmp_path.iterdir()] == ["text.txt"]
