"""The __init__.pyi of sinkscope, its figures and its lab: what each public name is, for editors and type checkers.

The packages import their names when they are first used, which no type checker can follow.
"""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
PACKAGES = {"sinkscope": ["__version__: str"], "sinkscope.figures": [], "sinkscope.lab": []}
HEAD = "# Made by `make stub` from __init__.py. Do not edit it.\n"


def stub(name: str) -> str:
    """The text of a package's stub."""
    package = import_module(name)
    homes: dict[str, list[str]] = {}
    for each in getattr(package, "_PACKAGES", ()):
        homes.setdefault(name, []).append(each)
    for each, home in package._HOME_OF.items():
        homes.setdefault(home, []).append(each)
    lines = [f"from {home} import {', '.join(f'{n} as {n}' for n in names)}" for home, names in homes.items()]
    text = "\n".join([HEAD, *lines, "", *PACKAGES[name], f"__all__ = {package.__all__!r}", ""])
    for command in (["check", "--select", "I", "--fix"], ["format"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--quiet", "--stdin-filename", "sinkscope/__init__.pyi", "-"]
        text = subprocess.run(ruff, input=text, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return text


def main() -> None:
    for name in PACKAGES:
        Path(ROOT, *name.split("."), "__init__.pyi").write_text(stub(name), encoding="utf-8")


if __name__ == "__main__":
    main()
