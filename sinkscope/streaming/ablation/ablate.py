"""Perplexity against what the cache keeps: number of sinks, size, way of counting positions, and what the sinks are."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr
from torch import Tensor, nn

from sinkscope.analysis.perplexities import first_evicted
from sinkscope.arguments import whole_number
from sinkscope.core.anatomy import find_anatomy
from sinkscope.core.forward import check_vocabulary
from sinkscope.core.measure import texts_of
from sinkscope.errors import SinkscopeError
from sinkscope.streaming.ablation.ablation_table import ablation_table
from sinkscope.streaming.ablation.cells import Cell, run_cells
from sinkscope.streaming.ablation.factors import Factors, Level, factors_of
from sinkscope.streaming.ablation.model_source import ModelSource
from sinkscope.streaming.ablation.sink_tokens import FirstTokens, LineBreaks, RandomTokens, SinkTokens, line_break_token
from sinkscope.streaming.checkpoint import Progress
from sinkscope.streaming.limits import check_limits
from sinkscope.streaming.perplexity import Run, check_run, record_of, settings_of


def ablate(
    model: nn.Module | str | os.PathLike[str] | None,
    ids: Tensor | Sequence[Tensor],
    sinks: int | Iterable[int] = (0, 1, 2, 4, 8),
    cache_size: int | Iterable[int] = 1024,
    positions: str | Iterable[str] = "cache",
    kinds: str | Iterable[str] = "first",
    *,
    tokenizer: Any = None,
    block: int = 1024,
    seed: int = 0,
    resamples: int = 2000,
    n_jobs: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
    **attributes: Any,
) -> pd.DataFrame:
    """Perplexity of one text for every combination of sinks, cache size, positions and kind, over the same tokens.

    A cell of this factorial keeps `sinks` first tokens and the last `cache_size - sinks`. What stands in the first
    `sinks` places, BOS included, is its kind: "first", the tokens of the text; "line breaks" (Xiao et al. 2023,
    Table 1); or "random", drawn evenly from the model's vocabulary. The first max(sinks) + 1 tokens are scored in no
    cell, so that the same tokens of the text are scored in all. Without sinks, kind and positions make no difference:
    that cell is run once for each cache size and its row repeated, so that the table stays a full factorial;
    `table.drop_duplicates("cell")` keeps each once.

    Cells run through joblib, inside `joblib.parallel_config(backend="loky" | "dask" | "ray")` on its workers. A loaded
    model travels with every cell; a name or path travels alone, and each worker loads its own and keeps it.

    Args:
        model: a decoder in eval mode, or what `load` takes: a hub id, a directory, a .gguf file, None for the demo one.
        ids: token ids [sequence, token], or a list of 1-D tensors; each text starts with an empty cache.
        sinks, cache_size: tokens; one number or several.
        positions: "cache", "original", or both.
        kinds: "first", "line breaks", "random", or several.
        tokenizer: finds the line break; the model's own when None, where it is known.
        block: tokens per forward pass; changes time and memory, not losses.
        seed: of the random tokens and of the bootstrap.
        resamples: of the bootstrap.
        n_jobs: cells at the same time; as the surrounding `joblib.parallel_config` says, otherwise 1, when None.
        folder: keeps a file for each cell, named by a hash of all that its losses depend on. The same cell is not run
            again, one that was interrupted goes on, and a damaged file is refused, as a result that was relied on once
            should not change unseen.
        progress: whether to show a progress bar; once two seconds have passed when None.
        attributes: noted in the table's attrs (the name of the text, for one).

    Returns:
        One row for each combination, attrs with all that is needed to repeat it:

        cell                                     number of the run the row shows
        sinks, cache_size, positions, kind       the combination
        ppl, low, high                           perplexity over the tokens scored, and its 95% interval
        ratio, ratio_low, ratio_high             to the most sinks of the same cache size (the first tokens, positions
                                                 in the cache, where there are such cells), and its paired interval
        ppl_evicted, low_evicted, high_evicted   the same over the tokens from which every cache has evicted some
        seconds                                  that the run took

        Intervals are those of `ppl_table`, the same resamples for all cells.

    Raises:
        SinkscopeError: sinks below 0 or not below the cache size, a text too short to fill the largest cache, unknown
            positions or kinds, no tokenizer or no token for line breaks, a model that cannot be streamed, a damaged
            file of a cell.
    """
    factors = factors_of(sinks, cache_size, positions, kinds)
    seed, resamples = whole_number(seed, "seed", 0), whole_number(resamples, "resamples", 1)
    texts, run = texts_of(ids), Run(block, samples=None, seed=0)
    _check_lengths(texts, max(factors.cache_size))
    source = ModelSource.of(model)
    try:
        opened = source.open()
        check_run(opened, texts, run)
        for policy in dict.fromkeys(level.policy for level in factors.levels()):
            check_limits(opened, policy, max(map(len, texts)))
        cells = _cells(opened, texts, factors, _sink_tokens(factors, source, tokenizer, seed), run, folder)
        finished = run_cells(source, list(cells.values()), run, n_jobs, progress)
        curve = _curve(opened, texts, list(cells.values()), finished)
    finally:
        source.forget()
    table = ablation_table(curve, factors, {level: cell.key for level, cell in cells.items()}, resamples, seed)
    table.attrs |= {"block": block, "seed": seed} | attributes
    return table


def _check_lengths(texts: list[Tensor], cache_size: int) -> None:
    """A token is evicted when `cache_size + 1` have been read, and missing from the next one's prediction."""
    shortest, need = min(map(len, texts)), first_evicted(cache_size) + 1
    if shortest < need:
        raise SinkscopeError(
            f"a text of {shortest} tokens evicts nothing from a cache of {cache_size}; give {need} tokens or more, or "
            "a smaller cache_size."
        )


def _sink_tokens(factors: Factors, source: ModelSource, tokenizer: Any, seed: int) -> dict[str, SinkTokens]:
    """What to put first, by kind."""
    tokens: dict[str, SinkTokens] = {"first": FirstTokens()}
    if "line breaks" in factors.kind:
        tokens["line breaks"] = LineBreaks(line_break_token(source.tokenizer() if tokenizer is None else tokenizer))
    if "random" in factors.kind:
        embeddings: Any = find_anatomy(source.open()).base.get_input_embeddings()  # type: ignore[operator]
        tokens["random"] = RandomTokens(embeddings.num_embeddings, seed)
    return tokens


def _cells(
    model: nn.Module,
    texts: list[Tensor],
    factors: Factors,
    tokens: dict[str, SinkTokens],
    run: Run,
    folder: str | os.PathLike[str] | None,
) -> dict[Level, Cell]:
    """What each row of the table needs to be run; rows may share it."""
    place = None if folder is None else _made(Path(folder).expanduser().resolve())
    cells = {}
    for level in factors.levels():
        changed = tokens[level.kind].put(texts, level.sinks)
        for text in changed:
            check_vocabulary(find_anatomy(model).base, text)
        settings = settings_of(model, changed, level.policy, run)
        cells[level] = Cell(changed, level.policy, settings, place)
    return cells


def _curve(model: nn.Module, texts: list[Tensor], cells: list[Cell], finished: dict[str, Progress]) -> xr.Dataset:
    """The losses as a record, one policy for each cell that was run, under its key."""
    unique = {cell.key: cell for cell in cells}
    curve = record_of(
        model, texts, [cell.policy for cell in unique.values()], [finished[key] for key in unique]
    ).assign_coords(policy=list(unique))
    del curve.attrs["policies"]
    return curve


def _made(folder: Path) -> Path:
    """The folder, which can be written to before anything has run."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise SinkscopeError(f"folder={str(folder)!r} cannot be made: {problem.strerror}; give another.") from problem
    return folder
