"""Lints the canvases of the explorer as the browser gets them: one module each, in which every name has to be known.

A name that one module does not use may be used by another: it is reported where no module uses it.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import anywidget

from sinkscope.explorer.page import page_script

RULES = ["-D", "no-undef", "-D", "no-redeclare"]


def main(oxlint: str) -> int:
    """The number of findings, each printed with the line that it is about."""
    widgets = [each for each in anywidget.AnyWidget.__subclasses__() if each.__module__.startswith("sinkscope.")]
    modules = {f"{each.__name__}.js": str(each._esm) for each in widgets} | {"page.js": page_script()}
    with tempfile.TemporaryDirectory() as folder:
        for name, text in modules.items():
            Path(folder, name).write_text(text, encoding="utf-8")
        command = [oxlint, "--config", ".oxlintrc.json", *RULES, "--format", "json", folder]
        found = json.loads(subprocess.run(command, capture_output=True, text=True).stdout)["diagnostics"]
    lines: dict[str, list[str]] = {}
    for each in found:
        name, row = Path(each["filename"]).name, each["labels"][0]["span"]["line"]
        lines.setdefault(f"{each['message']} [{each.get('code', 'syntax')}]", []).append(
            modules[name].splitlines()[row - 1].strip()
        )
    reported = 0
    for message, places in lines.items():
        declared_in = sum(places[0] in text for text in modules.values())
        if "no-unused-vars" not in message or len(places) == declared_in:
            print(f"{message}\n    {places[0]}")
            reported += 1
    print(f"{len(modules)} canvases, {reported} findings")
    return reported


if __name__ == "__main__":
    sys.exit(bool(main(*sys.argv[1:])))
