"""A last line in a file that proves it whole: the SHA-256 of all bytes before it, as a comment of its format.

What has a right one is as sinkscope wrote it, and may be replaced; a file that somebody edited has none.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from sinkscope.errors import SinkscopeError

_SAYS = "sinkscope wrote this file; SHA-256 of all bytes before this line: "
_FORMS = {
    ".nc": (b"", b""),  # behind the end that HDF5 knows of
    ".png": (b"", b""),  # behind its last chunk
    ".pdf": (b"% ", b""),
    ".svg": (b"<!-- ", b" -->"),
    ".html": (b"<!-- ", b" -->"),
    ".tex": (b"% ", b""),
    ".md": (b"<!-- ", b" -->"),
    ".py": (b"# ", b""),
    ".tsv": (b"# ", b""),
    ".txt": (b"", b""),
}
KINDS = tuple(_FORMS)


def comment(words: str, kind: str) -> bytes:
    """A line of words that a file of this kind may hold anywhere."""
    before, after = _FORMS[kind]
    return before + words.encode() + after + b"\n"


def sealed(data: bytes, kind: str) -> bytes:
    """The bytes of a file of this kind, such as ".pdf", with the line that proves them."""
    if not data.endswith(b"\n"):
        data += b"\n"
    return data + comment(_SAYS + hashlib.sha256(data).hexdigest(), kind)


def unsealed(data: bytes, kind: str) -> bytes | None:
    """What stands before that line; None where there is no such line, or it proves something else."""
    inside = data[: -line_length(kind)]
    return inside if inside and sealed(inside, kind) == data else None


def line_length(kind: str) -> int:
    return len(sealed(b"\n", kind)) - 1


def has_seal(path: Path, kind: str) -> bool:
    """Whether the file ends in such a line, whatever it proves: looked at without reading the file."""
    start = comment(_SAYS, kind).partition(b": ")[0]
    with path.open("rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - line_length(kind), 0))
        return file.read(len(start)) == start


def check_own(path: Path, what: str, kind: str | None = None) -> None:
    """Raise SinkscopeError where a file of this name is there that is not, or no more, as sinkscope wrote it."""
    if (held := held_by(path)) and unsealed(held, kind or path.suffix) is None:
        raise not_own(path, what)


def held_by(path: Path) -> bytes:
    """What a file holds; nothing where there is none, or none that can be read: writing to it says why."""
    try:
        return path.read_bytes() if path.is_file() else b""
    except (OSError, ValueError):
        return b""


def not_own(path: Path, what: str) -> SinkscopeError:
    return SinkscopeError(
        f"cannot write {what} to {path}: the file that is there was changed, or is not of sinkscope; move it away, or "
        "give another place."
    )
