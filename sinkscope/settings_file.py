"""Settings in a YAML file: plain data, of which nothing is there twice, that a person wrote and can read again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import yaml

from sinkscope.errors import SinkscopeError, first_line

LONGEST = 2**20  # bytes of a file


def read_settings(given: str | os.PathLike[str], what: str, example: str, page: str) -> Mapping[Any, Any]:
    """The mapping in a YAML file.

    Args:
        given: the path of the file.
        what: what it is to hold, such as "grid".
        example: how it begins.
        page: the title of one of the documentation.

    Raises:
        SinkscopeError: no such file, no YAML, a name twice in one mapping, an alias, or no mapping.
    """
    path = Path(os.path.expanduser(given))
    try:
        with path.open("rb") as file:
            held = file.read(LONGEST + 1)
        found = yaml.load(held.decode("utf-8-sig"), _Loader) if len(held) <= LONGEST else None
    except (OSError, ValueError, RecursionError) as problem:
        raise SinkscopeError(f"{str(path)!r} cannot be read ({first_line(problem)}); give a YAML file.") from problem
    except yaml.YAMLError as problem:
        where = getattr(problem, "problem_mark", None)
        line = f", line {where.line + 1}" if where is not None else ""
        said = getattr(problem, "problem", None) or first_line(problem)
        raise SinkscopeError(f"{path}{line} cannot be read as YAML ({said}).", page=page) from problem
    if len(held) > LONGEST:
        raise SinkscopeError(f"{path} is longer than {LONGEST:,} bytes, which no {what} is; give a YAML file of one.")
    if not isinstance(found, Mapping):
        raise SinkscopeError(f"{path} holds no {what}; give {example}.")
    return found


class _Loader(yaml.SafeLoader):
    """Plain data, in which no key is there twice and nothing refers to another place."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            self._refuse("an alias (*name)", self.peek_event())
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = [key.value for key, _ in node.value]
        if twice := [key for key, _ in node.value if names.count(key.value) > 1]:
            self._refuse(f"{twice[-1].value!r} twice in one mapping", twice[-1])
        return super().construct_mapping(node, deep)

    def _refuse(self, what: str, at: Any) -> NoReturn:
        raise yaml.constructor.ConstructorError(None, None, f"it has {what}", at.start_mark)
