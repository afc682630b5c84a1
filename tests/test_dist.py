"""What is released: a wheel and an sdist that install and work, typed, cited and listed as they are."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from packaging.version import Version

import sinkscope

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
VERSION = sinkscope.__version__

USE = """
import pathlib, sys
import numpy as np
import sinkscope, sinkscope.explorer.canvases
record = sinkscope.from_maps(np.tril(np.ones((1, 1, 1, 8, 8))) / np.arange(1, 9)[:, None])
opened = sinkscope.open_record(sinkscope.save_record(record, sys.argv[1]))
print(float(sinkscope.sink_rate(opened)), sinkscope.__version__, pathlib.Path(sinkscope.__file__).parent)
"""
TYPED = """import sinkscope
from sinkscope import lab

name: int = sinkscope.SinkWindow(4, 60).name
sinkscope.sink_mass(sinkscope.open_record("a.nc"), frist=1)
arm: int = lab.Arm
path: str = sinkscope.SinkWindow(4, 60).name
sinkscope.nothing
"""
UNREAD = "torch transformers numpy pandas xarray scipy matplotlib seaborn plotly ipywidgets traitlets jinja2 tqdm typer"


def run(*command: str | Path, cwd: Path, status: int = 0, path: str = "") -> str:
    """What a command prints; it finds packages where they are installed, or in `path`, and not in the project."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def ci_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"ci_{name}", ROOT / ".ci" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """The sdist of the tree, and the wheel of that sdist."""
    folder = tmp_path_factory.mktemp("dist")
    here = os.pathsep.join(sys.path)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder, path=here)
    return folder


@pytest.fixture(scope="module")
def python(dist, tmp_path_factory) -> Path:
    """The Python of an environment with the wheel, which finds the dependencies in the environment of the tests."""
    folder = tmp_path_factory.mktemp("clean")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "env", cwd=folder)
    python = folder / "env/bin/python"
    (wheel,) = dist.glob("*.whl")
    run(
        sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel,
        cwd=folder,
    )  # fmt: skip
    place = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    Path(place, "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return python


@pytest.mark.slow
def test_the_wheel_of_the_sdist_has_every_file_of_the_package_and_nothing_else(dist):
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        packed = {name for name in files.namelist() if ".dist-info/" not in name}
    here = (path for path in (ROOT / "sinkscope").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert packed == {path.relative_to(ROOT).as_posix() for path in here}
    assert {"sinkscope/py.typed", "sinkscope/__init__.pyi"} <= packed


@pytest.mark.slow
def test_the_sdist_has_what_the_project_is_tested_and_cited_with(dist):
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as files:
        packed = {name.partition("/")[2] for name in files.getnames()}
    wanted = [
        *ROOT.glob("*.md"),
        *ROOT.glob("*.txt"),
        *ROOT.glob("*.lock"),
        *ROOT.glob("CITATION.*"),
        *ROOT.glob(".ci/*.py"),
    ]
    assert {path.relative_to(ROOT).as_posix() for path in wanted} | {"LICENSE", "Makefile"} <= packed
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py")} <= packed


@pytest.mark.slow
def test_the_metadata_says_what_the_project_says(dist):
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        about = HeaderParser().parsestr(files.read(f"sinkscope-{VERSION}.dist-info/METADATA").decode())
    assert (about["Name"], about["Version"], about["License-Expression"]) == ("sinkscope", VERSION, "Apache-2.0")
    assert about["Requires-Python"] == PROJECT["requires-python"] and about["Summary"] == PROJECT["description"]
    assert dict(each.split(", ") for each in about.get_all("Project-URL")) == PROJECT["urls"]
    assert len(about.get_all("Requires-Dist")) > len(PROJECT["dependencies"])
    assert about["Description-Content-Type"] == "text/markdown" and about.get_payload().startswith("# sinkscope")


@pytest.mark.slow
def test_the_wheel_works_where_nothing_else_of_the_project_is(python, tmp_path):
    rate, version, place = run(python, "-c", USE, tmp_path / "a.nc", cwd=tmp_path).split()
    assert float(rate) == 1.0 and version == VERSION and Path(place).is_relative_to(python.parent.parent)
    command = python.parent / "sinkscope"
    assert run(command, "--version", cwd=tmp_path) == f"sinkscope {VERSION}\n"
    assert "intervene" in run(command, "--help", cwd=tmp_path)


@pytest.mark.slow
def test_the_types_reach_a_users_file(python, tmp_path):
    (tmp_path / "user.py").write_text(TYPED, encoding="utf-8")
    unread = ", ".join(f'"{name}", "{name}.*"' for name in UNREAD.split())
    config = f'[tool.mypy]\n[[tool.mypy.overrides]]\nmodule = [{unread}]\nfollow_imports = "skip"\n'
    (tmp_path / "pyproject.toml").write_text(config, encoding="utf-8")
    told = run(
        sys.executable, "-m", "mypy", "--python-executable", python, "--cache-dir", tmp_path / "cache", "user.py",
        cwd=tmp_path, status=1,
    )  # fmt: skip
    lines = re.findall(r"^user\.py:(\d+): error: (.*?)  \[(.*)\]$", told, re.MULTILINE)
    assert [(line, code) for line, _, code in lines] == [
        ("4", "assignment"), ("5", "call-arg"), ("6", "assignment"), ("8", "attr-defined"),
    ]  # fmt: skip
    assert 'expression has type "str"' in lines[0][1] and '"frist"' in lines[1][1]


@pytest.mark.parametrize("name", ["sinkscope", "sinkscope.figures", "sinkscope.lab"])
def test_type_checkers_are_told_every_public_name(name):
    stub = Path(ROOT, *name.split("."), "__init__.pyi").read_text(encoding="utf-8")
    assert stub == ci_script("stub").stub(name), "run `make stub`"


def test_version_and_licence_are_the_same_everywhere():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == PROJECT["version"] == VERSION and cited["license"] == PROJECT["license"]
    assert f"version       = {{{VERSION}}}" in (ROOT / "CITATION.bib").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest and (newest[1] == "Unreleased" or Version(newest[1]) == Version(VERSION))


def test_both_citations_name_the_same_papers_by_their_identifiers():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["references"]
    entries = re.findall(r"^@misc\{(.*?)\n\}", (ROOT / "CITATION.bib").read_text(encoding="utf-8"), re.M | re.S)
    found = {}
    for each in entries:
        fields = dict(re.findall(r"(\w+) += \{(.*?)\},?\n(?=  \w|$)", f"{each}\n", re.S))
        found[fields["eprint"]] = (int(fields["year"]), len(fields["author"].split(" and ")))
    assert len(found) == len(cited) >= 7
    for each in cited:
        (identifier,) = each["identifiers"]
        number = identifier["value"].removeprefix("10.48550/arXiv.")
        assert each["url"] == f"https://arxiv.org/abs/{number}" and identifier["type"] == "doi"
        assert found[number] == (each["year"], len(each["authors"]))


def test_what_is_cited_for_a_paper_is_public():
    text = (ROOT / "CITATION.bib").read_text(encoding="utf-8")
    named = [name for line in re.findall(r"^% (.*)\n@misc", text, re.MULTILINE) for name in line.split(", ")]
    assert len(named) > 7
    for name in named:
        home, _, last = name.rpartition(".")
        assert hasattr(getattr(sinkscope, home) if home else sinkscope, last), name


def test_the_bill_of_materials_lists_what_is_locked_with_hashes_and_licences(tmp_path):
    script = ci_script("sbom")
    script.main(tmp_path)
    (path,) = tmp_path.iterdir()
    made = json.loads(path.read_text(encoding="utf-8"))
    assert path.name == f"sinkscope-{VERSION}.cdx.json"
    assert (made["bomFormat"], made["specVersion"]) == ("CycloneDX", "1.6")
    assert made["metadata"]["component"]["purl"] == f"pkg:pypi/sinkscope@{VERSION}"
    lock = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    listed = [
        f"{each['name']}=={each['version']} --hash=sha256:{each['hashes'][0]['content']}" for each in made["components"]
    ]
    assert listed == lock
    licensed = {each["name"] for each in made["components"] if each.get("licenses")}
    assert {each["name"] for each in made["components"]} - licensed == {
        name for name in (line.partition("==")[0] for line in lock) if re.match("nvidia-|cuda-|triton", name)
    }
    assert made == script.bill()  # the same again, bytes and all


@pytest.mark.parametrize("path", sorted(ROOT.glob(".github/ISSUE_TEMPLATE/[0-9]*.yml")), ids=lambda path: path.stem)
def test_an_issue_form_asks_what_it_needs_once(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert form["name"] and form["description"] and form["labels"]
    asked = [each for each in form["body"] if each["type"] != "markdown"]
    assert {each["type"] for each in asked} <= {"input", "textarea", "checkboxes", "dropdown"}
    assert all(each["attributes"]["label"] for each in asked)
    assert len({each["id"] for each in asked}) == len(asked)
    assert any(each.get("validations", {}).get("required") for each in asked)
