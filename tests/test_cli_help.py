"""Help of every command ends in examples, and each of them is a command line that the program takes."""

from __future__ import annotations

import shlex

import pytest
import typer
from typer.testing import CliRunner

from sinkscope import cli
from sinkscope.cli.examples import EXAMPLES, FIRST

COMMANDS = typer.main.get_group(cli.app).commands
LINES = [(name, line.strip()) for name, lines in EXAMPLES.items() for line in lines.strip().splitlines()]


def test_every_command_has_examples_and_no_other():
    assert EXAMPLES.keys() == COMMANDS.keys()


@pytest.mark.parametrize(("name", "line"), LINES, ids=[line for _, line in LINES])
def test_an_example_is_taken_as_it_stands_and_shown_on_a_line_of_its_own(name, line):
    program, *words = shlex.split(line)
    assert (program, words[0]) == ("sinkscope", name)
    command = COMMANDS[name]
    several = [each for option in command.params if option.multiple for each in option.opts]
    context = command.make_context(name, cli.spread(words, several)[1:])
    given = {option for option, value in context.params.items() if value not in (None, False, [], ())}
    named = {word.removeprefix("--").replace("-", "_") for word in words if word.startswith("--")}
    assert named <= given and not context.args
    shown = CliRunner().invoke(cli.app, [name, "--help"], prog_name="sinkscope").output
    assert line in [each.strip() for each in shown.splitlines()]


def test_an_example_with_an_unknown_option_would_be_told():
    with pytest.raises(Exception, match="No such option: --nothing"):
        COMMANDS["cost"].make_context("cost", ["--nothing", "3"])


def test_the_first_page_shows_where_to_begin():
    shown = CliRunner().invoke(cli.app, ["--help"]).output
    for line in FIRST.strip().splitlines():
        assert line.strip() in shown
