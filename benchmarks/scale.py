"""What it costs to run many cells, to keep them, and to be sure of what was kept.

    python benchmarks/scale.py workers     # a sweep of 16 cells of a small model with one worker and with two
    python benchmarks/scale.py resume      # what going on with that sweep adds to it
    python benchmarks/scale.py verify      # a run folder of 1,000 cells
    python benchmarks/scale.py checkpoint  # a cache of 4 + 1,020 tokens of the demo model
    python benchmarks/scale.py report      # opening a report, with its checks
    python benchmarks/scale.py identity    # everything that determines the demo model's numbers
    python benchmarks/scale.py long        # a million tokens of the demo text, and their last losses once more

Without a name all but the last run, one after the other. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from memory import held

import sinkscope

SINKS, CACHE = 4, 1024
LAYERS, WIDTH = 2, 64  # of the small model
MILLION, LAST, SETTLED = 1_000_000, 10_000, 10_000  # tokens: of a text, those compared, those before memory is read


def timed(run: Callable[[], object]) -> tuple[float, object]:
    begun = time.perf_counter()
    result = run()
    return time.perf_counter() - begun, result


def bar(value: float, limit: float, unit: str = "s", least: bool = False) -> str:
    met = value >= limit if least else value <= limit
    return f"{value:8.3f} {unit} [{'>=' if least else '<='} {limit}] {'ok' if met else 'MISSED'}"


def small(folder: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = dict(hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_attention_heads=4, num_key_value_heads=2)
    LlamaForCausalLM(LlamaConfig(vocab_size=128, num_hidden_layers=LAYERS, **sizes)).save_pretrained(folder / "model")
    return folder / "model"


def sixteen(folder: Path, sizes: list[int], tokens: int) -> sinkscope.Grid:
    ids = torch.randint(128, (tokens,), generator=torch.Generator().manual_seed(0))
    return sinkscope.Grid(
        models={"small": str(small(folder))}, texts={"random": ids}, policies=["sinks"], sinks=[1, 2, 4, 8],
        cache_sizes=sizes,
    )  # fmt: skip


SIZES, TOKENS = [16, 32, 48, 64], 262_144


def workers() -> None:
    cores, both = os.cpu_count() or 1, torch.get_num_threads()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        grid, seconds = sixteen(folder, SIZES, TOKENS), {}
        for name, jobs, threads in (("one", 1, max(1, both // 2)), ("all", 1, both), ("two", 2, both)):
            torch.set_num_threads(threads)  # of this process; those of workers are shared out between them
            run = partial(sinkscope.sweep, grid, folder / name, n_jobs=jobs, progress=False)
            seconds[name], _ = timed(run)
        apart = [sinkscope.compare_cells(folder / name, folder / "two")["largest"].max() for name in ("one", "all")]
    print(f"16 cells of {LAYERS} layers, {WIDTH} wide, on {TOKENS:,} tokens; {cores} cores; workers' start included")
    print(f"  one worker, {max(1, both // 2)} threads      {seconds['one']:8.1f} s")
    print(f"  one worker, {both} threads      {seconds['all']:8.1f} s")
    print(f"  two workers, {max(1, cores // 2)} threads each {seconds['two']:7.1f} s")
    print(f"  one over two, as many threads each {bar(seconds['one'] / seconds['two'], 1.6, 'x', least=True)}")
    print(f"  one with all threads over two      {seconds['all'] / seconds['two']:8.3f} x")
    print(f"  largest difference of a loss {apart[0]:.1e} nats; with another number of threads {apart[1]:.1e}")


def resume() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        grid = sixteen(folder, SIZES, TOKENS)
        run = partial(sinkscope.sweep, grid, folder / "run", progress=False)
        (whole, _), (again, _) = timed(run), timed(run)
    print(f"16 cells in {whole:.1f} s; the same call once all are finished, which is what going on adds: {again:.2f} s")
    print(f"  overhead {bar(100 * again / whole, 2.0, '%')}")


def verify(count: int = 1000) -> None:
    from sinkscope.analysis.sweep import cell_rows
    from sinkscope.experiments.run_folder import key_of, settings_text, write_cell

    model, tokenizer = sinkscope.load()
    record = sinkscope.perplexity(
        model, sinkscope.read_tokens(tokenizer, limit=1024), [sinkscope.SinkWindow(4, 252)], progress=False
    )
    rows, random = cell_rows(record), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as place:
        for number in range(count):
            settings = {f"setting {at}": f"value {at}" for at in range(100)} | {"seed": number}
            nll = xr.DataArray(random.gamma(2.0, 2.0, record.nll.shape).astype(np.float32), dims=record.nll.dims)
            about = {"experiment": "perplexity", "model": "demo", "text": str(number)}
            write_cell(Path(place) / key_of(settings_text(settings)), settings, about, rows, record.assign(nll=nll))
        seconds, table = timed(lambda: sinkscope.list_cells(place))
        export, _ = timed(lambda: sinkscope.sweep_table(place))
    assert len(table) == count and (table["problem"] == "").all()
    print(
        f"{count:,} cells of 1,024 losses\n  verified {bar(seconds, 10)}\n  verified and made a table {export:8.3f} s"
    )


def checkpoint() -> None:
    model, tokenizer = sinkscope.load()
    ids = sinkscope.read_tokens(tokenizer, limit=CACHE + 8)
    cache = sinkscope.SinkCache(model, sinks=SINKS, window=CACHE - SINKS)
    with tempfile.TemporaryDirectory() as place, torch.no_grad(), cache:
        model(ids, cache=cache)
        saved = [timed(lambda: cache.save(Path(place) / "cache.safetensors"))[0] for _ in range(5)]
        size = (Path(place) / "cache.safetensors").stat().st_size
    print(f"a cache of {SINKS} + {CACHE - SINKS} of the demo model, {size / 2**20:.0f} MiB")
    print(f"  saved {bar(statistics.median(saved), 0.2)} (median of {len(saved)})")


def report() -> None:
    model, tokenizer = sinkscope.load()
    with tempfile.TemporaryDirectory() as place:
        sinkscope.report(model, tokenizer, sequences=4, length=512, progress=False).save(
            Path(place) / "report", progress=False
        )
        opened = [timed(lambda: sinkscope.Report.open(Path(place) / "report"))[0] for _ in range(3)]
    print(f"a report of 4 sequences of 512\n  opened {bar(statistics.median(opened), 2)} (median of {len(opened)})")


def identity() -> None:
    from sinkscope.models.identity import identity as told

    model, _ = sinkscope.load()
    seconds = [timed(lambda: told(model))[0] for _ in range(3)]
    print(
        f"identity of the demo model\n  {bar(seconds[0], 1)} the first time, {statistics.median(seconds):.3f} s again"
    )


def long(sinks: int = 4, window: int = 124) -> None:
    """The last losses of a million tokens, and those of a text that holds little else.

    A token sees `window` tokens back in each layer, so that all but the sinks is forgotten after layers x window of
    them: the sinks and what comes from there on give the same losses. There the blocks, at whose starts positions are
    counted anew, are of another length and begin elsewhere.
    """
    model, tokenizer = sinkscope.load()
    book = sinkscope.read_tokens(tokenizer, limit=MILLION)
    ids = torch.cat([book, book], 1)[:, :MILLION]  # the book has 993,000 tokens, and begins again
    recent = LAST + model.config.num_hidden_layers * window
    kept, read = [], 0

    def watch(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        nonlocal read
        read += args[0].shape[1]
        if read > SETTLED:
            kept.append(held("VmRSS"))

    def losses(text: torch.Tensor, block: int) -> np.ndarray:
        policies = [sinkscope.SinkWindow(sinks, window)]
        return sinkscope.perplexity(model, text, policies, block=block, progress=False).nll.values.ravel()[-LAST:]

    hook = model.get_input_embeddings().register_forward_pre_hook(watch)
    seconds, whole = timed(lambda: losses(ids, 256))
    hook.remove()
    apart = np.abs(whole - losses(torch.cat([ids[:, :sinks], ids[:, -recent:]], 1), 97)).max()
    apart, grown = 1e6 * float(apart), 100 * (max(kept) / kept[0] - 1)
    print(f"{MILLION:,} tokens of the demo text with {sinks} + {window} in the cache, {MILLION / seconds:.0f} a second")
    print(f"  their last {LAST:,} losses, positions counted anew at other moments {bar(apart, 1000, 'µnats')}")
    print(f"  memory after {SETTLED:,} tokens {kept[0] / 2**20:.0f} MiB; the most later, more by {bar(grown, 2, '%')}")


if __name__ == "__main__":
    parts = {each.__name__: each for each in (workers, resume, verify, checkpoint, report, identity, long)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=parts)
    chosen = parser.parse_args().part
    for name, part in parts.items():
        if chosen == name or (chosen is None and part is not long):
            part()
