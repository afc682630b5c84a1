"""The memory that runs of the demo model take beside what `sinkscope.models.memory` says before they begin.

python benchmarks/memory.py
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch

import sinkscope as S
from sinkscope.experiments import perplexity as reading
from sinkscope.scope import measure as measuring

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def held(field: str) -> int:
    """A field of the status of this process, in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def taken(run: Callable[[], object]) -> int:
    """The most bytes that a run holds beyond those held before, in a process of its own."""
    read, write = os.pipe()
    if not os.fork():
        CLEAR.write_text("5")
        before = held("VmRSS")
        run()
        os.write(write, str(held("VmHWM") - before).encode())
        os._exit(0)
    os.close(write)
    os.wait()
    return int(os.read(read, 99))


def told(run: Callable[[], object]) -> int:
    """The bytes that a run is said to need."""

    class Told(Exception):
        pass

    def stop(rows: int, fixed: int, each: int, *_: object) -> int:
        raise Told(fixed + rows * each)

    with patch.object(reading, "fitting_rows", stop), patch.object(measuring, "fitting_rows", stop):
        try:
            run()
        except Told as needs:
            return int(needs.args[0])
    raise AssertionError


def main() -> None:
    warnings.simplefilter("ignore")
    model, _ = S.load(None)
    weights = model.state_dict()
    for name, value in weights.items():  # out of the file, which every process would map anew
        weights[name] = value.clone()
    model.load_state_dict(weights, assign=True)
    ids = torch.randint(0, 49_000, (8, 4096), generator=torch.Generator().manual_seed(0))
    S.perplexity(model, ids[:1, :64], [S.Dense(), S.SinkWindow(4, 20)], progress=False)
    S.measure(model, ids[:1, :64])
    runs = {}
    for texts, tokens, block in ((1, 1024, 64), (1, 2048, 256), (1, 2048, 1024), (1, 2048, 2048), (2, 1024, 1024)):
        for policy in (S.Dense(), S.SinkWindow(4, 508)):
            runs[f"perplexity, {texts} x {tokens}, block {block}, {policy.name}"] = (
                lambda n=texts, t=tokens, b=block, p=policy: S.perplexity(
                    model, ids[:n, :t], [p], block=b, progress=False
                )
            )
    for texts, tokens in ((1, 256), (1, 1024), (4, 1024), (1, 4096)):
        runs[f"measure, {texts} x {tokens}"] = lambda n=texts, t=tokens: S.measure(model, ids[:n, :t], progress=False)
    print(f"{'run':<60}{'said':>8}{'taken':>8}  MB")
    for name, run in runs.items():
        print(f"{name:<60}{told(run) / 1e6:8.0f}{taken(run) / 1e6:8.0f}", flush=True)


if __name__ == "__main__":
    main()
