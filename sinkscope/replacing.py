"""Files that are never torn: written beside, and put in place in one step once they are whole."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sinkscope.errors import SinkscopeError


@contextmanager
def replacing(path: Path, what: str) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` when the context ends well.

    Args:
        path: the file; an older one stays as it was until then, and whenever writing fails.
        what: its name in the error message, such as "the record".

    Raises:
        SinkscopeError: the folder cannot be written, or the disk is full.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as problem:
        raise SinkscopeError(f"cannot write {what} to {path}: {problem.strerror or problem}.") from problem
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
