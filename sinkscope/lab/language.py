"""Whether sinks appear in a small language model trained from scratch, and whether it then needs them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sinkscope.arguments import finite_number, whole_number
from sinkscope.errors import SinkscopeError
from sinkscope.experiments.perplexity import perplexity
from sinkscope.lab.decoder import Arm, Sizes, arm_coordinates, arms_of
from sinkscope.lab.language_run import BETAS, LanguageRun, LanguageSchedule
from sinkscope.lab.runs import device_of, heads_width, run_all, run_attributes, seeds_of
from sinkscope.lab.texts import Text
from sinkscope.policies import Dense, Policy, SinkWindow, Window
from sinkscope.probes import LogSumExp, SinkMass
from sinkscope.progress import progress_bar
from sinkscope.record import first_evicted
from sinkscope.scope.scope import attached
from sinkscope.streaming.readers import text_coordinates

MOST_CHARACTERS = 255
ROWS = 16  # sequences that run together in evaluation
HELD_OUT = 0.05  # of the text, its end: nothing there is learned from
ARMS = ("softmax", "softmax1", "sink token")


def language_model(
    arms: str | Arm | Iterable[str | Arm] = ARMS,
    seeds: int | Iterable[int] = (0,),
    steps: int = 3000,
    layers: int = 4,
    *,
    heads: int = 4,
    width: int = 128,
    length: int = 256,
    batch: int = 16,
    learning_rate: float = 2e-3,
    weight_decay: float = 0.1,
    every: int = 50,
    evaluated: int = 128,
    cache_size: int = 64,
    sinks: Iterable[int] = (0, 1, 2, 4),
    source: str | os.PathLike[str] | None = None,
    text: str | None = None,
    device: str = "cpu",
    folder: str | os.PathLike[str] | None = None,
    n_jobs: int | None = 1,
    progress: bool | None = None,
    **attributes: Any,
) -> xr.Dataset:
    """Train small Llama-style language models from scratch, look for sinks in them, and evict these.

    Table 3 of Xiao et al. 2023 at small scale: models of the characters of a text, trained with softmax, with softmax1
    and with a learned token in front of every passage, read text that was held out with dense attention and with
    caches of one size that keep 0, 1, 2 or 4 first tokens. Texts are as long as the passages trained on, so that
    every position is a trained one for every policy. `language_verdict` says in words what came out.

    Runs of one seed share their first weights and all passages.

    Args:
        arms: as in `bigram_backcopy`, "learned sink" apart; or `Arm` objects.
        seeds: one run each.
        steps: updates.
        layers, heads, width: of the model.
        length: tokens of a passage, the sink token apart.
        batch: passages in each update.
        learning_rate: of AdamW at its highest; it rises over the first steps and falls along a cosine to a tenth.
        weight_decay: of AdamW.
        every: steps over which a recorded loss is the mean.
        evaluated: texts of `length` tokens that it is measured on, spread over the last twentieth of the text.
        cache_size: tokens that every policy but dense keeps, sinks included.
        sinks: first tokens among them; 0 is window attention. The sink token is the first of its arm.
        source, text, device, folder, n_jobs, progress, attributes: as in `bigram_backcopy`; `folder` keeps the trained
            weights.

    Returns:
        A record with the dimensions arm, seed, step, policy, sequence, token, layer, head:

        train_loss      mean over the last `every` steps, nats per token
        sink_mass       attention on the first token, mean over all later queries of a text; `sink_null` is that of a
                        head that looks at every key alike
        virtual_mass    the same on the virtual key of softmax1; NaN in other arms
        nll             loss of each token of the held-out texts under each policy, nats; the first one of a text, which
                        only the sink token could predict, is scored in no arm

        attrs hold all that is needed to repeat it.

    Raises:
        SinkscopeError: as `bigram_backcopy`; also sinks that leave no window, texts too short for anything to be
            evicted, too little text to hold some out.
    """
    ways, numbers = arms_of(arms), seeds_of(seeds)
    for arm in ways:
        if arm.has_sink_logit:
            raise SinkscopeError(f"the arm {arm.name!r} trains logits that Llama does not have; leave it out here.")
    sizes_given = {"steps": steps, "layers": layers, "heads": heads, "batch": batch, "every": every}
    for name, value in {**sizes_given, "evaluated": evaluated}.items():
        whole_number(value, name, 1)
    policies = _policies(cache_size, sinks, whole_number(length, "length", 4))
    read = Text.of(source, text)
    characters, ids = read.encoded(MOST_CHARACTERS)
    learned, texts = _split(ids, length, evaluated)
    sizes = Sizes(len(characters) + 1, length, layers, heads, heads_width(width, heads, even=True))
    schedule = LanguageSchedule(
        steps,
        batch,
        finite_number(learning_rate, "learning_rate", 0.0),
        finite_number(weight_decay, "weight_decay", 0.0, inclusive=True),
        every,
    )
    place = device_of(device)
    runs = [LanguageRun(learned, read.sha256, sizes, schedule, arm, seed, place) for arm in ways for seed in numbers]
    results = run_all(runs, folder, n_jobs, progress)
    record = _record(runs, ways, numbers, results, texts, policies, progress)
    return record.assign_attrs(
        kind="language",
        task="language model",
        model=f"Llama-style, {layers} layers of width {width}, trained on characters",
        parameters=sum(each.numel() for each in runs[0].untrained().parameters()),
        text=read.name,
        text_sha256=read.sha256,
        characters=characters,
        tokens_learned_from=len(learned),
        tokens=int(texts.numel()),
        sequences=len(texts),
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
        cache_size=cache_size,
        policies="; ".join(map(repr, policies)),
        transformers=version("transformers"),
        **run_attributes(ways, numbers, place),
    ).assign_attrs(attributes)


def _record(
    runs: Sequence[LanguageRun],
    arms: Sequence[Arm],
    seeds: Sequence[int],
    results: Sequence[dict[str, Tensor]],
    texts: Tensor,
    policies: Sequence[Policy],
    shown: bool | None,
) -> xr.Dataset:
    """All results, and what the trained models do on the texts, as one record."""
    measured = []
    with progress_bar(len(runs), "model", shown, desc="evaluation") as bar:
        for run, found in zip(runs, results, strict=True):
            measured.append(_evaluated(run, found, texts, policies))
            bar.update()

    def joined(values: Sequence[Any]) -> np.ndarray:
        stacked = np.stack([np.asarray(each) for each in values])
        return stacked.reshape(len(arms), len(seeds), *stacked.shape[1:])

    nll = joined([each["nll"] for each in measured])
    nll[..., 0] = np.nan
    heads = ("arm", "seed", "sequence", "layer", "head")
    sizes = runs[0].sizes
    return xr.Dataset(
        {
            "train_loss": (("arm", "seed", "step"), joined([each["train_loss"] for each in results])),
            "sink_mass": (heads, joined([each["sink_mass"] for each in measured])),
            "virtual_mass": (heads, joined([each["virtual_mass"] for each in measured])),
            "nll": (("arm", "seed", "policy", "sequence", "token"), nll, {"units": "nats"}),
            "sink_null": ("arm", [_even_mass(texts.shape[1] + arm.has_sink_token) for arm in arms]),
            "seconds": (("arm", "seed"), joined([each["seconds"] for each in results])),
        },
        coords={
            **arm_coordinates(arms),
            "seed": list(seeds),
            "step": runs[0].schedule.recorded,
            "policy": [policy.name for policy in policies],
            **{name: ("policy", [each.coordinates[name] for each in policies]) for name in policies[0].coordinates},
            **text_coordinates(list(texts)),
            "layer": np.arange(sizes.layers),
            "head": np.arange(sizes.heads),
        },
    )


def _policies(cache_size: int, sinks: Iterable[int], length: int) -> list[Policy]:
    counts = list(dict.fromkeys(whole_number(each, "sinks", 0) for each in sinks))
    if not counts or 0 not in counts or max(counts) == 0:
        raise SinkscopeError(f"sinks={counts} compare nothing: give 0, which is window attention, and more.")
    if max(counts) >= whole_number(cache_size, "cache_size", 1):
        raise SinkscopeError(
            f"sinks={max(counts)} leave no window in cache_size={cache_size}: give fewer, or more cache."
        )
    if length <= first_evicted(cache_size):
        raise SinkscopeError(
            f"texts of length={length} evict nothing from cache_size={cache_size}: give "
            f"{first_evicted(cache_size) + 1} tokens or more, or a smaller cache."
        )
    bounded: list[Policy] = [SinkWindow(each, cache_size - each) if each else Window(cache_size) for each in counts]
    return [Dense(), *bounded]


def _split(ids: np.ndarray, length: int, evaluated: int) -> tuple[np.ndarray, Tensor]:
    """What is learned from [token], and texts held out [sequence, token] that do not overlap."""
    kept = len(ids) - max(int(HELD_OUT * len(ids)), length)
    if kept < length:
        raise SinkscopeError(
            f"the text has {len(ids):,} characters, too few to learn from and to hold some out: give {2 * length:,} or "
            "more, or a smaller length."
        )
    held = ids[kept:]
    count = min(evaluated, len(held) // length)
    starts = np.linspace(0, len(held) - length, count).astype(int)
    return ids[:kept], torch.from_numpy(np.stack([held[start : start + length] for start in starts]))


def _evaluated(
    run: LanguageRun, found: dict[str, Tensor], texts: Tensor, policies: Sequence[Policy]
) -> dict[str, np.ndarray]:
    """Measure a trained model on texts [sequence, token].

    Returns:
        sink_mass [sequence, layer, head]: attention on the first token (the sink token, in its arm), mean over all
            later queries.
        virtual_mass [sequence, layer, head]: the same on the virtual key of value 0; NaN where there is none.
        nll [policy, sequence, token]: nats, for the tokens of the text alone, NaN where not scored.
    """
    model, ids, normaliser = run.trained(found), run.with_sink_token(texts), run.arm.normaliser
    probes = [SinkMass(first=1), LogSumExp()]
    with torch.no_grad(), attached(model, normaliser=normaliser, probes=probes) as scope:
        for rows in ids.split(ROWS):
            model.model(rows.to(run.device), use_cache=False)
    later = scope.record.sel(query=slice(1, None))
    mass = later["sink_mass"].isel(sink=0).mean("query").transpose("sequence", "layer", "head")
    virtual = later.get("virtual_sink_mass", mass.expand_dims(query=1) * np.nan).mean("query")
    curve = perplexity(model, ids, policies, normaliser=normaliser, progress=False)
    return {
        "sink_mass": mass.values.astype(np.float32),
        "virtual_mass": virtual.transpose("sequence", "layer", "head").values.astype(np.float32),
        "nll": curve["nll"].values[:, :, ids.shape[1] - texts.shape[1] :],
    }


def _even_mass(length: int) -> float:
    """Mean of 1/(i+1) over the queries i >= 1 of a text: what uniform attention gives to the first key."""
    return float(np.mean(1 / np.arange(2, length + 1)))
