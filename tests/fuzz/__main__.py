"""Every public function, class, method and command with arguments of any kind: what became of the cases, in a table.

    python -m tests.fuzz [CASES OF EACH] [PART OF A NAME]

Ends with exit code 1 where a case was unclear.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator

import torch

from tests.fuzz import commands
from tests.fuzz.subjects import subjects
from tests.fuzz.trying import OK, REFUSED, UNCLEAR, Outcome, examine

EXAMPLES = 25
VERDICTS = (OK, REFUSED, UNCLEAR)


def outcomes(examples: int, part: str) -> Iterator[tuple[str, list[Outcome]]]:
    """What became of the cases of everything with this in its name."""
    for name, subject in subjects().items():
        if part in name:
            yield name, examine(subject, examples)
    for name in commands.commands():
        if part in (called := f"sinkscope {name}"):
            yield called, commands.examine(name, examples)


def main(examples: int = EXAMPLES, part: str = "") -> int:
    torch.set_num_threads(1)
    print(f"{'':40}", *(f"{verdict:>8}" for verdict in VERDICTS))
    every: Counter[str] = Counter()
    for name, found in outcomes(examples, part):
        tally = Counter(each.verdict for each in found)
        every += tally
        print(f"{name:40}", *(f"{tally[verdict]:8}" for verdict in VERDICTS), flush=True)
        for each in dict.fromkeys(each for each in found if each.verdict == UNCLEAR):
            print(f"    {each.case}\n        {each.said}", flush=True)
    print(f"{every.total():,} cases: " + ", ".join(f"{every[verdict]:,} {verdict}" for verdict in VERDICTS))
    return int(every[UNCLEAR] > 0)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:2]), *sys.argv[2:3]))
