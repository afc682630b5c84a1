"""The command line: one line and exit code 2 for a user's mistake, nothing half-written, quick help."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import sinkscope
from sinkscope import cli
from sinkscope.errors import SinkscopeError
from sinkscope.reporting.document import Report
from tests.support import naive_record, talking


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
        return Report(naive_record.norms_only())

    monkeypatch.setattr(gather, "report", report)
    return calls


@pytest.mark.slow
def test_help_and_version_do_not_import_torch():
    code = (
        "import sys; sys.argv = ['sinkscope', '--help']\nfrom sinkscope.cli import main\n"
        "try: main()\nexcept SystemExit as e: assert not e.code\n"
        "assert not {'torch', 'transformers', 'matplotlib', 'xarray'} & set(sys.modules), 'imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "report" in done.stdout and "chat" in done.stdout
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


@pytest.mark.slow
def test_a_mistake_in_a_fresh_process(tmp_path):
    done = run("report", "/no/such/model", "--out", str(tmp_path / "out"))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("sinkscope: ") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_directory_is_refused_before_anything_is_measured(monkeypatch, capsys, tmp_path, measured):
    (tmp_path / "thesis.tex").write_text("mine")
    code, _, err = call(monkeypatch, capsys, "report", "--out", str(tmp_path))
    assert code == 2 and "thesis.tex" in err and measured == []


@pytest.mark.slow
def test_the_report_lands_in_out_and_the_headline_on_the_screen(monkeypatch, capsys, tmp_path, measured):
    out = tmp_path / "out"
    code, said, _ = call(
        monkeypatch, capsys, "report", "some/model", "--text", "a.txt", "--out", str(out), "--tokens", "4096",
        "--length", "512", "--dtype", "bfloat16", "--device", "cpu", "--trust-remote-code",
    )  # fmt: skip
    assert code == 0 and "report.html" in said
    assert (out / "report.html").is_file()
    ((given, options),) = measured
    assert given == ("some/model",) and options["texts"] == ["a.txt"]
    assert (options["sequences"], options["length"]) == (8, 512)
    assert options["dtype"] == "bfloat16" and options["device"] == "cpu" and options["trust_remote_code"] is True


@pytest.mark.slow
def test_quiet_says_nothing_and_defaults_are_not_passed_on(monkeypatch, capsys, tmp_path, measured):
    code, said, err = call(monkeypatch, capsys, "report", "--quiet", "--out", str(tmp_path / "out"), "--tokens", "100")
    assert (code, said, err) == (0, "", "")
    options = measured[0][1]
    options.pop("each")
    assert options == {"texts": None, "sequences": 1, "length": 100, "progress": False}


@pytest.mark.slow
def test_the_page_grows_in_a_new_place_and_an_earlier_report_stays_until_the_new_one_is_whole(
    monkeypatch, capsys, tmp_path, measured
):
    out = tmp_path / "out"
    for is_new in (True, False):
        code, _, err = call(monkeypatch, capsys, "report", "--quiet", "--out", str(out))
        assert code == 0 and ("each" in measured[-1][1]) is is_new, err
    measured[0][1]["each"](Report(naive_record.norms_only()))
    assert (out / "report.html").is_file() and not (out / "figures").exists()


@pytest.mark.slow
def test_quick_stops_after_the_first_part(monkeypatch, capsys, tmp_path, measured):
    code, _, err = call(monkeypatch, capsys, "report", "--quick", "--out", str(tmp_path / "out"))
    assert code == 0 and [part.title for part in measured[0][1]["sections"]] == ["Where attention goes"], err
    for other in (["--streaming"], ["--softmax"], ["--plan", "plan.yaml"], ["--write-plan", "plan.yaml"]):
        code, _, err = call(monkeypatch, capsys, "report", "--quick", *other, "--out", str(tmp_path / "other"))
        assert code == 2 and f"{other[0]} is of more" in err and len(measured) == 1


@pytest.mark.slow
def test_a_plan_is_written_from_a_call_and_followed_by_another(monkeypatch, capsys, tmp_path, measured):
    from tests.fuzz import world

    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_text(world.PROSE)
    model, plan = str(world.saved_model()), tmp_path / "plan.yaml"
    call_of = ["report", model, "--text", "book.txt", "--segments", "2", "--length", "24", "--no-streaming"]
    code, said, err = call(monkeypatch, capsys, *call_of, "--write-plan", str(plan))
    written = sinkscope.Plan.of(plan)
    assert code == 0 and written.sha256 in said and measured == [] and not (tmp_path / "report").exists(), err
    assert (written.segments, written.length, written.streaming, written.softmax) == (2, 24, False, True)
    assert written.model["source"] == model and len(written.model["weights"]) == 64
    assert written.texts[0]["source"] == "book.txt" and len(written.texts[0]["sha256"]) == 64
    code, _, _ = call(monkeypatch, capsys, "report", "--plan", str(plan), "--quiet")
    assert code == 0 and measured[0][1] | {"each": None} == {
        "texts": None,
        "plan": plan,
        "progress": False,
        "each": None,
    }
    code, _, err = call(monkeypatch, capsys, *call_of, "--write-plan", str(plan))
    assert code == 2 and "is there already" in err
    code, _, err = call(monkeypatch, capsys, "report", "--plan", str(plan), "--audio", "a.wav")
    assert code == 2 and "leave --image and --audio out" in err


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


@pytest.fixture
def talk(monkeypatch, capsys):
    """`sinkscope chat` with a tiny model that says "the", " cat" and ends, for every line given."""
    model, words = talking.talker(), talking.tokenizer()
    model.waiting = talking.wanting(model, *[52, 60, talking.END] * 3)
    monkeypatch.setattr(sinkscope, "load", lambda *_, **__: (model, words))

    def chat(lines, *options):
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines) if isinstance(lines, str) else lines)
        return call(monkeypatch, capsys, "chat", "--window", "100", *options)

    chat.model, chat.words = model, words
    return chat


@pytest.mark.slow
def test_a_chat_answers_line_by_line_and_tells_how_full_its_cache_is(talk):
    code, said, told = talk("the cat\n\nran\n", "--sinks", "2")
    assert (code, said) == (0, "the cat\nthe cat\n")
    messages, held = [], []
    for question in ("the cat", "ran"):
        messages.append({"role": "user", "content": question})
        text = talk.words.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) + "the cat"
        held.append(len(talk.words(text, add_special_tokens=False).input_ids))
        messages.append({"role": "assistant", "content": "the cat"})
    for status, count in zip(told.splitlines()[1:], held, strict=True):
        assert status.startswith(f"cache {count} / 102 tokens, 0.1 MB, {count} seen, ") and status.endswith("tokens/s")
    assert not talk.model.model._forward_pre_hooks


def test_a_chat_can_start_over_and_be_left(talk):
    code, said, told = talk("the cat\n/reset\nthe cat\n/quit\nmore\n", "--quiet")
    assert (code, said, told) == (0, "the cat\nthe cat\n", "")
    code, _, told = talk("the cat\n/reset\nthe cat\n/quit\nmore\n", "--max-new-tokens", "1")
    _, first, over, second = told.splitlines()
    assert over == "cache 0 / 104 tokens, 0.1 MB, 0 seen" and " 20 seen" in first
    assert first.endswith("stopped by --max-new-tokens") and " 19 seen" in second  # ended at once


def test_ctrl_c_ends_an_answer_and_keeps_the_conversation(talk):
    passes = []

    def interrupt(*_):
        passes.append(0)
        if len(passes) == 2:
            signal.raise_signal(signal.SIGINT)

    talk.model.register_forward_hook(interrupt)
    before = signal.getsignal(signal.SIGINT)
    code, said, told = talk("the cat\nran\n", "--max-new-tokens", "3")
    assert (code, said) == (0, "the\n\n") and signal.getsignal(signal.SIGINT) is before
    _, first, second = told.splitlines()
    assert first.endswith("interrupted") and "seen" in second


class Typed(io.StringIO):
    """A line, and then Ctrl-C."""

    def readline(self, *_):
        line = super().readline()
        if not line:
            raise KeyboardInterrupt
        return line


@pytest.mark.parametrize("stdin", [io.StringIO(""), Typed("the cat\n")])
def test_the_end_of_a_chat_is_no_mistake(talk, stdin):
    assert talk(stdin)[0] == 0


def test_a_model_cannot_move_the_cursor(talk):
    talk.words.decode = lambda ids, **_: "\x1b[2Jhi\x07\n" * len(ids)
    assert talk("the cat\n", "--quiet")[1] == "[2Jhi\n" * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sinks", "-1"], "-1"),
        (["--max-new-tokens", "0"], "max_new_tokens=0"),
        (["--temperature", "-1"], "temperature=-1.0"),
        (["--top-p", "2"], "top_p=2.0"),
    ],
)
def test_a_chat_that_makes_no_sense_is_one_line(talk, options, message):
    code, said, told = talk("the cat\n", *options)
    assert (code, said) == (2, "") and told.count("\n") == 1 and message in told
