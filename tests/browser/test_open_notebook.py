"""What the other tests here rely on: a page that asks the network, or has an error, fails its test."""

from __future__ import annotations

import pytest

from tests.support.open_notebook import leaves_the_machine


def test_a_foreign_request_and_a_console_error_fail_the_check(open_notebook):
    notebook = open_notebook(["print('hello')"], name="watched.ipynb")
    notebook.run()
    notebook.check()
    assert any("/lab/tree/watched.ipynb" in url for url in notebook.requests)

    notebook.page.evaluate("() => fetch('https://example.org/').catch(() => null)")
    with pytest.raises(AssertionError, match=r"example\.org"):
        notebook.check()
    notebook.requests.clear()
    with pytest.raises(AssertionError, match="ERR_NAME_NOT_RESOLVED"):  # the browser's own message about it
        notebook.check()
    notebook.console_errors.clear()

    notebook.page.evaluate("() => setTimeout(() => { throw new Error('not caught'); })")
    notebook.page.wait_for_timeout(100)
    with pytest.raises(AssertionError, match="not caught"):
        notebook.check()
    notebook.console_errors.clear()


def test_an_error_in_a_cell_fails_the_run_and_one_in_the_kernel_its_question(open_notebook):
    notebook = open_notebook(["number = 3\n1 / 0"], name="failing.ipynb")
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        notebook.run()
    assert notebook.python("number") == 3
    with pytest.raises(AssertionError, match="NameError"):
        notebook.python("missing")
    with pytest.raises(AssertionError, match="NameError"):
        notebook.execute("missing")


def test_addresses_of_other_machines_are_told_from_this_ones():
    inside = [
        "http://127.0.0.1:8888/lab",
        "ws://127.0.0.1:8888/api",
        "data:image/png;base64,AA",
        "blob:http://127.0.0.1/1",
    ]
    outside = ["https://example.org/", "http://127.0.0.1.example.org/", "wss://example.org/socket"]
    assert [leaves_the_machine(url) for url in inside] == [False] * 4
    assert [leaves_the_machine(url) for url in outside] == [True] * 3
