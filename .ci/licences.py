"""docs/licences.md: the licence of every package in constraints.txt, as its own metadata states it."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, files, metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
HEAD = """# Licences of what sinkscope stands on

sinkscope is under Apache-2.0 ([LICENSE](../LICENSE)) and contains nobody else's code; a saved report's page contains
plotly.js (MIT), with its notice. What is installed beside it keeps its own licence, here as the metadata of each
package states it, for the versions in [constraints.txt](../constraints.txt). torch from the package index brings
NVIDIA's CUDA libraries on Linux, under NVIDIA's licences; its builds for the CPU do not. Made by `make licences`. Do
not edit it.
"""
TABLE = "| package | version | licence |\n| --- | --- | --- |"


def licence(name: str) -> str:
    about = metadata(name)
    if stated := about["License-Expression"]:
        return stated
    classified = [
        each.rpartition(" :: ")[2] for each in about.get_all("Classifier") or [] if each.startswith("License ::")
    ]
    written = (about["License"] or "").strip().partition("\n")[0]
    texts = [each.read_text() for each in files(name) or [] if each.name.upper().startswith("LICEN")]
    headings = [text.strip().partition("\n")[0] for text in texts]
    return ", ".join(classified or filter(None, [written])) or ", ".join(headings) or "not stated"


def closure(roots: list[Requirement]) -> set[str]:
    """The packages that these need, on this machine, and what those need."""
    found: set[tuple[str, str]] = set()
    waiting = [(root, "") for root in roots]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for wanted in {"", *requirement.extras} - {extra for known, extra in found if known == name}:
            found.add((name, wanted))
            try:
                needed = metadata(name).get_all("Requires-Dist") or []
            except PackageNotFoundError:
                continue
            waiting += [(Requirement(each), wanted) for each in needed]
    return {name for name, _ in found}


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))
    needed = closure(list(map(Requirement, project["dependencies"])))
    parts: dict[bool, list[str]] = {True: [], False: []}
    for name, version in sorted(pins.items(), key=lambda pin: pin[0].lower()):
        parts[canonicalize_name(name) in needed].append(f"| {name} | {version} | {licence(name)} |")
    titles = {True: "To run it", False: "For the demo, for texts, for tests and for work on it"}
    tables = [f"## {titles[part]}\n\n{TABLE}\n" + "\n".join(rows) for part, rows in parts.items()]
    (ROOT / "docs/licences.md").write_text("\n\n".join([HEAD.rstrip(), *tables]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
