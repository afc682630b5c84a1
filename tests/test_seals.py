"""Files that prove themselves: replaced where they are as they were written, and otherwise left alone and named."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from sinkscope import SinkscopeError, files
from sinkscope.files import write_figure, write_sealed, write_table_files
from sinkscope.seals import KINDS, has_seal, sealed, unsealed

MINE = "was changed, or is not of sinkscope; move it away"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("data", [b"", b"words", b"lines\n", bytes(range(256))])
def test_a_seal_proves_every_byte_before_it_and_itself(kind, data, tmp_path):
    whole = sealed(data, kind)
    assert unsealed(whole, kind) == (data if data.endswith(b"\n") else data + b"\n")
    for place in range(len(whole)):
        assert unsealed(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :], kind) is None
        assert unsealed(whole[:place], kind) is None
    assert unsealed(whole + b"\n", kind) is None
    (tmp_path / "file").write_bytes(whole)
    assert has_seal(tmp_path / "file", kind)
    (tmp_path / "file").write_bytes(whole[:-10])
    assert not has_seal(tmp_path / "file", kind)


@pytest.mark.parametrize("kind", ["py", "tex", "md", "txt"])
def test_a_file_of_text_is_replaced_until_somebody_edits_it(kind, tmp_path):
    path = tmp_path / f"file.{kind}"
    for words in ("one", "two"):
        write_sealed(path, words.encode(), "the file")
    assert path.read_text().startswith("two\n")
    path.write_text(path.read_text().replace("two", "mine"))
    with pytest.raises(SinkscopeError, match=MINE):
        write_sealed(path, b"three", "the file")
    assert path.read_text().startswith("mine")


@pytest.mark.slow
def test_figures_are_read_as_ever_and_none_is_replaced_where_one_was_edited(tmp_path):
    names = [path.name for path in write_figure(Figure(), tmp_path / "figure")]
    assert names == ["figure.pdf", "figure.svg", "figure.png"]
    with Image.open(tmp_path / "figure.png") as picture:
        picture.load()
    ElementTree.parse(tmp_path / "figure.svg")
    before = (tmp_path / "figure.pdf").read_bytes()
    assert b"%%EOF" in before[-1024:]
    write_figure(Figure(), tmp_path / "figure")
    edited = (tmp_path / "figure.svg").read_text().replace("<svg", "<!-- moved the legend --><svg", 1)
    (tmp_path / "figure.svg").write_text(edited)
    (tmp_path / "figure.pdf").write_bytes(before)
    with pytest.raises(SinkscopeError, match=rf"figure\.svg: the file that is there {MINE}"):
        write_figure(Figure(), tmp_path / "figure")
    assert (tmp_path / "figure.svg").read_text() == edited and (tmp_path / "figure.pdf").read_bytes() == before


@pytest.mark.parametrize("kind", ["tex", "md"])
def test_a_csv_is_proven_by_the_page_beside_it(kind, tmp_path):
    page, csv = tmp_path / f"table.{kind}", tmp_path / "table.csv"
    for number in "12":
        write_table_files(f"a\n{number}\n", page, f"page {number}\n")
    assert csv.read_text() == "a\n2\n" and page.read_text().startswith("page 2\n")
    csv.write_text("a\n3\n")
    with pytest.raises(SinkscopeError, match=MINE):
        write_table_files("a\n4\n", page, "page 4\n")
    assert csv.read_text() == "a\n3\n" and page.read_text().startswith("page 2\n")
    page.unlink()
    with pytest.raises(SinkscopeError, match=MINE):
        write_table_files("a\n4\n", page, "page 4\n")
    assert not page.exists()


def test_a_kill_between_a_table_and_its_page_stops_no_later_run(tmp_path, monkeypatch):
    page, write = tmp_path / "table.tex", files.write_bytes

    class Killed(BaseException): ...

    for last in range(1, 5):
        write_table_files("a\n1\n", page, "page 1\n")
        left = last

        def dies(path: Path, data: bytes, what: str) -> None:
            nonlocal left
            left -= 1
            if not left:
                raise Killed
            write(path, data, what)

        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr(files, "write_bytes", dies)
            write_table_files("a\n2\n", page, "page 2\n")
        write_table_files("a\n3\n", page, "page 3\n")
        assert (tmp_path / "table.csv").read_text() == "a\n3\n"
