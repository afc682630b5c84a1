"""dist/sinkscope-VERSION.cdx.json: what `make demo` installs, as a CycloneDX bill of materials.

    python .ci/sbom.py dist/

Names, versions and hashes are those of requirements.lock, and licences those of docs/licences.md. Two runs give the
same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tomllib
import uuid
from pathlib import Path
from typing import Any

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LOCKED = re.compile(r"^([\w.-]+)==(\S+) --hash=sha256:([0-9a-f]{64})$", re.MULTILINE)
ROW = re.compile(r"^\| ([\w.-]+) \| (\S+) \| (.+) \|$", re.MULTILINE)


def licences() -> dict[str, str]:
    """The licence that each package states, by its name."""
    rows = ROW.findall((ROOT / "docs/licences.md").read_text(encoding="utf-8"))
    return {canonicalize_name(name): stated for name, _, stated in rows}


def licence(stated: str) -> list[dict[str, Any]]:
    """As an SPDX expression where it is one, or by its name."""
    try:
        return [{"expression": str(canonicalize_license_expression(stated))}]
    except InvalidLicenseExpression:
        return [{"license": {"name": stated}}]


def component(name: str, version: str, kind: str, stated: str = "", sha256: str = "") -> dict[str, Any]:
    purl = f"pkg:pypi/{canonicalize_name(name)}@{version}"
    made: dict[str, Any] = {"type": kind, "bom-ref": purl, "name": name, "version": version, "purl": purl}
    if sha256:
        made["hashes"] = [{"alg": "SHA-256", "content": sha256}]
    if stated:
        made["licenses"] = licence(stated)
    return made


def bill() -> dict[str, Any]:
    """The bill of materials; its serial number follows from the lock file, and it bears no date."""
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    stated, subject = licences(), component(project["name"], project["version"], "application", project["license"])
    components = [
        component(name, version, "library", stated.get(canonicalize_name(name), ""), sha256)
        for name, version, sha256 in LOCKED.findall(lock)
    ]
    digest = hashlib.sha256(f"{subject['purl']}\n{lock}".encode()).hexdigest()
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.UUID(digest[:32], version=4)}",
        "version": 1,
        "metadata": {"component": subject},
        "components": components,
        "dependencies": [{"ref": subject["bom-ref"], "dependsOn": sorted(each["bom-ref"] for each in components)}],
    }


def main(folder: Path) -> None:
    made = bill()
    path = folder / f"sinkscope-{made['metadata']['component']['version']}.cdx.json"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{path}: {len(made['components'])} components")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
