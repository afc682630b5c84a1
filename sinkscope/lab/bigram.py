"""How sinks emerge: small models trained on the Bigram-Backcopy task, with softmax and with what may replace it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sinkscope.arguments import finite_number, whole_number
from sinkscope.errors import SinkscopeError
from sinkscope.lab.backcopy import (
    BETAS,
    TOKENS,
    Backcopy,
    BackcopyRun,
    Schedule,
    evaluation_ids,
    kinds_of,
    uniform_bos_mass,
)  # fmt: skip
from sinkscope.lab.decoder import NAMES, Arm, Sizes, arm_coordinates, arms_of
from sinkscope.lab.runs import device_of, heads_width, run_all, run_attributes, seeds_of
from sinkscope.lab.texts import Text

MOST_LAYERS = 3
DIMS = {
    "loss": ("tokens",),
    "bos_mass": ("layer", "head", "tokens"),
    "previous_mass": ("layer", "head", "tokens"),
    "row_sum": ("layer", "head", "tokens"),
    "bos_value_norm": ("layer", "head"),
    "value_norm": ("layer", "head"),
    "bos_hidden_norm": ("layer",),
    "hidden_norm": ("layer",),
}


def bigram_backcopy(
    arms: str | Arm | Iterable[str | Arm] = NAMES,
    seeds: int | Iterable[int] = (0, 1, 2),
    steps: int = 1000,
    layers: int = 1,
    *,
    heads: int = 1,
    width: int = 64,
    length: int = 64,
    batch: int = 64,
    learning_rate: float = 3e-3,
    weight_decay: float = 0.01,
    every: int = 25,
    evaluated: int = 128,
    source: str | os.PathLike[str] | None = None,
    text: str | None = None,
    triggers: str | None = None,
    device: str = "cpu",
    folder: str | os.PathLike[str] | None = None,
    n_jobs: int | None = 1,
    progress: bool | None = None,
    **attributes: Any,
) -> xr.Dataset:
    """Train small models from scratch, one for each arm and seed, and watch whether a sink grows on BOS.

    The task is Bigram-Backcopy (Guo et al. 2024): characters follow one another as in a text, except that after a
    trigger the character before it comes again. A head that copies has nothing to do after all other characters, and
    softmax still makes it spend one whole unit of attention there.

    Runs of one seed share their first weights and all training sequences, so that arms can be compared pairwise.
    All runs are measured on the same other sequences.

    Args:
        arms: any of "softmax", "softmax1", "learned sink" (a logit for each head, trained with the rest), "clipped
            softmax", "sigmoid", "relu", "sink token" (softmax, with a learned token in front of BOS); or `Arm` objects.
        seeds: one run each; intervals take three or more.
        steps: updates.
        layers: 1 to 3.
        heads, width: of each layer.
        length: tokens of a sequence, BOS included. The default was chosen for softmax's sink to have grown after 1,000
            steps; over 96 tokens it had got to 0.28 by then (one seed).
        batch: sequences in each update.
        learning_rate, weight_decay: of AdamW.
        every: steps between two measurements; the first and the last step are always measured.
        evaluated: sequences measured on.
        source: where the characters come from, as in `read_text`; the demo text when None.
        text: the text itself, in place of a source.
        triggers: characters; the three most frequent ones that are not white space when None.
        device: "cpu", "cuda".
        folder: keeps a file for each run, named by a hash of all that it depends on; the same run is not run again,
            and a damaged file is refused. In the user's cache folder when None.
        n_jobs: runs at the same time, each in a process of its own; as the surrounding `joblib.parallel_config` says
            when None. On a CPU one run for each core is quicker than several cores for one run.
        progress: whether to show a progress bar; once two seconds have passed when None.
        attributes: noted in the record's attrs.

    Returns:
        A record with the dimensions arm, seed, step, layer, head, and tokens: "trigger" and "non-trigger" queries, and
        "all" of them without BOS.

        loss                                what follows the query, nats; `best_loss` is that of the true probabilities
        bos_mass, previous_mass             attention of the query on BOS, and on the token before it
        row_sum                             attention on BOS and all characters; the rest goes to a virtual key or to
                                            the learned sink token, where there is one
        bos_value_norm, value_norm          of the value of BOS, and of those of the characters
        bos_hidden_norm, hidden_norm        the same of the hidden states behind each layer
        bos_null                            `bos_mass` of a head that looks at every key alike

        attrs hold all that is needed to repeat it.

    Raises:
        SinkscopeError: no seeds, an unknown arm, numbers out of range, layers outside 1 to 3, an empty text, triggers
            it does not have, a damaged file of a run, a loss that is not finite.
    """
    ways, numbers = arms_of(arms), seeds_of(seeds)
    if whole_number(layers, "layers", 1) > MOST_LAYERS:
        raise SinkscopeError(
            f"layers={layers} is more than the laboratory's small models have: give 1 to {MOST_LAYERS}."
        )
    read = Text.of(source, text)
    task = Backcopy.of(read, triggers)
    sizes = Sizes(
        task.tokens,
        whole_number(length, "length", 2),
        layers,
        whole_number(heads, "heads", 1),
        heads_width(width, heads),
    )
    schedule = Schedule(
        whole_number(steps, "steps", 1),
        whole_number(batch, "batch", 1),
        finite_number(learning_rate, "learning_rate", 0.0),
        finite_number(weight_decay, "weight_decay", 0.0, inclusive=True),
        whole_number(every, "every", 1),
        whole_number(evaluated, "evaluated", 1),
    )
    place = device_of(device)
    runs = [BackcopyRun(task, read.sha256, sizes, schedule, arm, seed, place) for arm in ways for seed in numbers]
    record = _record(runs, ways, numbers, run_all(runs, folder, n_jobs, progress))
    return record.assign_attrs(
        kind="emergence",
        task="Bigram-Backcopy",
        model=f"Bigram-Backcopy, {layers} layer{'s' * (layers > 1)}",
        text=read.name,
        text_sha256=read.sha256,
        characters=task.characters,
        triggers=task.triggers,
        optimiser=f"AdamW, betas {BETAS}",
        steps=steps,
        layers=layers,
        heads=heads,
        width=width,
        batch=batch,
        learning_rate=schedule.learning_rate,
        weight_decay=schedule.weight_decay,
        every=every,
        evaluated=evaluated,
        **run_attributes(ways, numbers, place),
    ).assign_attrs(attributes)


def _record(
    runs: Sequence[BackcopyRun], arms: Sequence[Arm], seeds: Sequence[int], results: Sequence[dict[str, Tensor]]
) -> xr.Dataset:
    """All results as one record."""
    task, sizes, schedule = runs[0].task, runs[0].sizes, runs[0].schedule
    ids = evaluation_ids(task, sizes, schedule)
    entropy = task.entropies(ids[:, :-1])
    best = [float(entropy[kind].mean()) for kind in kinds_of(task, ids[:, :-1])]

    def joined(name: str) -> np.ndarray:
        values = torch.stack([result[name] for result in results])
        return values.reshape(len(arms), len(seeds), *values.shape[1:]).numpy()

    variables: dict[str, Any] = {name: (("arm", "seed", "step", *dims), joined(name)) for name, dims in DIMS.items()}
    nulls = [uniform_bos_mass(task, ids, int(arm.has_sink_token)).numpy() for arm in arms]
    return xr.Dataset(
        variables
        | {
            "best_loss": ("tokens", best),
            "bos_null": (("arm", "tokens"), np.stack(nulls)),
            "seconds": (("arm", "seed"), joined("seconds")),
        },
        coords={
            **arm_coordinates(arms),
            "seed": list(seeds),
            "step": schedule.measured,
            "layer": np.arange(sizes.layers),
            "head": np.arange(sizes.heads),
            "tokens": list(TOKENS),
            "length": sizes.length,
        },
    )
