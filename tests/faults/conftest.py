"""What every trial came to, counted over the session and printed at its end."""

from __future__ import annotations

from collections import Counter

import pytest

COUNTS: Counter[tuple[str, str]] = Counter()


@pytest.fixture
def tally(request):
    """Counts an outcome of the test that asks: `tally("refused")`."""
    name = request.node.name

    def count(outcome: str) -> None:
        COUNTS[name, outcome] += 1

    return count


def pytest_terminal_summary(terminalreporter):
    if not COUNTS:
        return
    terminalreporter.section("faults")
    for name in dict.fromkeys(name for name, _ in COUNTS):
        found = {outcome: count for (of, outcome), count in COUNTS.items() if of == name}
        told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(found.items()))
        terminalreporter.line(f"{sum(found.values()):5d}  {name}: {told}")
