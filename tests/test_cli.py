"""The command line: one line and exit code 2 for a user's mistake, nothing half-written, quick help."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import sinkscope
from sinkscope import cli
from sinkscope.errors import SinkscopeError
from sinkscope.reporting import Report
from tests.reporting import naive


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "sinkscope.cli", *words], capture_output=True, text=True, timeout=200)


def call(monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    """The program in this process: exit code, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["sinkscope", *words])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    out, err = capsys.readouterr()
    return int(leaving.value.code or 0), out, err


@pytest.fixture
def measured(monkeypatch):
    """`report` without a model: what it was called with, and a small report given back."""
    from sinkscope.reporting import gather

    calls = []

    def report(*given, **options):
        calls.append((given, options))
        return Report(naive.norms_only())

    monkeypatch.setattr(gather, "report", report)
    return calls


def test_help_and_version_do_not_import_torch():
    code = (
        "import sys; sys.argv = ['sinkscope', '--help']\nfrom sinkscope.cli import main\n"
        "try: main()\nexcept SystemExit as e: assert not e.code\n"
        "assert not {'torch', 'transformers', 'matplotlib', 'xarray'} & set(sys.modules), 'imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "report" in done.stdout
    assert run("--version").stdout.strip() == f"sinkscope {sinkscope.__version__}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["report", "/no/such/model"], "/no/such/model"),
        (["nonsense"], "nonsense"),
        (["report", "--nonsense"], "--nonsense"),
        (["report", "--sequences", "0"], "--sequences"),
        (["report", "--tokens", "many"], "--tokens"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(monkeypatch, capsys, tmp_path, words, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(monkeypatch, capsys, *words)
    assert code == 2 and out == ""
    assert err.startswith("sinkscope: ") and err.count("\n") == 1 and message in err
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_in_a_fresh_process(tmp_path):
    done = run("report", "/no/such/model", "--out", str(tmp_path / "out"))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("sinkscope: ") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_directory_is_refused_before_anything_is_measured(monkeypatch, capsys, tmp_path, measured):
    (tmp_path / "thesis.tex").write_text("mine")
    code, _, err = call(monkeypatch, capsys, "report", "--out", str(tmp_path))
    assert code == 2 and "thesis.tex" in err and measured == []


def test_the_report_lands_in_out_and_the_headline_on_the_screen(monkeypatch, capsys, tmp_path, measured):
    out = tmp_path / "out"
    code, said, _ = call(
        monkeypatch, capsys, "report", "some/model", "--text", "a.txt", "--out", str(out), "--tokens", "4096",
        "--length", "512", "--dtype", "bfloat16", "--device", "cpu", "--trust-remote-code",
    )  # fmt: skip
    assert code == 0 and "report.html" in said
    assert (out / "report.html").is_file()
    ((given, options),) = measured
    assert given == ("some/model", None, "a.txt")
    assert (options["sequences"], options["length"]) == (8, 512)
    assert options["dtype"] == "bfloat16" and options["device"] == "cpu" and options["trust_remote_code"] is True


def test_quiet_says_nothing_and_defaults_are_not_passed_on(monkeypatch, capsys, tmp_path, measured):
    code, said, err = call(monkeypatch, capsys, "report", "--quiet", "--out", str(tmp_path / "out"), "--tokens", "100")
    assert (code, said, err) == (0, "", "")
    assert measured[0][1] == {"sequences": 1, "length": 100, "progress": False}


def test_an_interrupt_leaves_nothing_and_exits_with_130(monkeypatch, capsys, tmp_path):
    from sinkscope.reporting import gather

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(gather, "report", interrupted)
    code, _, err = call(monkeypatch, capsys, "report", "--out", str(tmp_path / "out"))
    assert code == 130 and "interrupted" in err and list(tmp_path.iterdir()) == []


def test_an_error_over_several_lines_is_still_one(monkeypatch, capsys, tmp_path):
    from sinkscope.reporting import gather

    def fail(*_, **__):
        raise SinkscopeError("first\nsecond")

    monkeypatch.setattr(gather, "report", fail)
    _, _, err = call(monkeypatch, capsys, "report", "--out", str(tmp_path / "out"))
    assert err == "sinkscope: first second\n"


def test_the_program_is_installed_under_its_name():
    configuration = (Path(cli.__file__).parents[2] / "pyproject.toml").read_text()
    assert 'sinkscope = "sinkscope.cli:main"' in configuration
