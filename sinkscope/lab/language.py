"""Whether sinks appear in a small language model trained from scratch, character by character, and whether it then
needs them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn import functional

from sinkscope.arguments import checks_types, whole_number
from sinkscope.errors import SinkscopeError
from sinkscope.experiments.perplexity import perplexity, policy_coordinates
from sinkscope.experiments.runner import Advance
from sinkscope.hf.attention import AttentionCall, MaskRequest, register, use_implementation
from sinkscope.hf.models import new_llama
from sinkscope.lab.decoder import Arm, Sizes, causal_weights
from sinkscope.lab.runs import Comparison, Text, TrainingRun, TrainingSchedule, UnderWay
from sinkscope.normalisers import Normaliser, Softmax
from sinkscope.policies import Dense, Policy, SinkWindow, Window
from sinkscope.probes import LogSumExp, SinkMass
from sinkscope.progress import progress_bar
from sinkscope.record import first_evicted
from sinkscope.scope.scope import attached
from sinkscope.streaming.readers import text_coordinates
from sinkscope.undo import Undo

MOST_CHARACTERS = 255
ROWS = 16  # sequences that run together in evaluation
HELD_OUT = 0.05  # of the text, its end: nothing there is learned from
ARMS = ("softmax", "softmax1", "sink token")
CLIPPED_NORM, LAST_RATE, WARM_STEPS = 1.0, 0.1, 100
ROOM = 4  # the model is told of so many times its trained length; nothing is computed from it
WEIGHTS = "weights."
ATTENTION = "sinkscope_lab"  # as transformers knows it
NORMALISERS: dict[nn.Module, Normaliser] = {}  # while `training_attention` lasts


@checks_types
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
    every position is a trained one for every policy. Runs of one seed share their first weights and all passages.
    `language_verdict` says in words what came out.

    >>> sizes = dict(layers=1, heads=1, width=16, length=12, batch=4, cache_size=4, sinks=(0, 1), evaluated=4)
    >>> record = lab.language_model("softmax", steps=2, every=1, **sizes)
    >>> record.arm.values.tolist()
    ['softmax']

    Args:
        arms, seeds: as in `bigram_backcopy`, "learned sink" and "gated" apart.
        steps, batch: updates, and passages in each.
        layers, heads, width: of the model.
        length: tokens of a passage, the sink token apart.
        learning_rate, weight_decay: of AdamW; the highest rate, to which it rises over the first steps, and falls from
            there along a cosine to a tenth.
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

    Raises:
        SinkscopeError: as `bigram_backcopy`; also sinks that leave no window, texts too short for anything to be
            evicted, too little text to hold some out.
    """
    schedule = LanguageSchedule.of(learning_rate, weight_decay, steps=steps, batch=batch, every=every)
    policies = _policies(cache_size, sinks, whole_number(length, "length", 4))
    read = Text.of(source, text)
    characters, ids = read.encoded(MOST_CHARACTERS)
    learned, texts = _split(ids, length, whole_number(evaluated, "evaluated", 1))
    sizes = Sizes.of(len(characters) + 1, length, layers, heads, width, even=True)
    run = partial(LanguageRun, learned, read.sha256, sizes, schedule)
    found = Comparison(run, arms, seeds, device, folder, n_jobs, progress)
    about = {
        "kind": "language",
        "task": "language model",
        "model": f"Llama-style, {layers} layers of width {width}, trained on characters",
        "parameters": sum(each.numel() for each in found.runs[0].untrained().parameters()),
        "characters": characters,
        "tokens_learned_from": len(learned),
        "tokens": int(texts.numel()),
        "sequences": len(texts),
        "evaluated": evaluated,
        "cache_size": cache_size,
        "policies": "; ".join(map(repr, policies)),
        "transformers": version("transformers"),
    }
    return _record(found, texts, policies, progress).assign_attrs(about | found.attributes(read) | attributes)


def _policies(cache_size: int, sinks: Iterable[int], length: int) -> list[Policy]:
    counts = list(dict.fromkeys(whole_number(each, "sinks", 0) for each in sinks))
    if 0 not in counts or max(counts) == 0:
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
    return [Dense(), *(SinkWindow(each, cache_size - each) if each else Window(cache_size) for each in counts)]


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


@dataclass(frozen=True)
class LanguageSchedule(TrainingSchedule):
    """The learning rate rises over the first steps and falls along a cosine to a tenth; a recorded loss is a mean over
    `every` steps."""

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        warm = min(WARM_STEPS, max(1, self.steps // 10))
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        done = (step - warm) / max(1, self.steps - warm)
        return self.learning_rate * (LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * done)))


@dataclass(frozen=True, eq=False)
class LanguageRun(TrainingRun[np.ndarray]):
    """A model of a text [token]; the last token of its vocabulary is the sink token, which only its arm uses."""

    betas = (0.9, 0.95)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.arm.has_sink_logit or self.arm.has_gate:
            trains = "logits" if self.arm.has_sink_logit else "gates"
            raise SinkscopeError(
                f"the arm {self.arm.name!r} trains {trains} that Llama does not have; leave it out here."
            )

    @property
    def settings(self) -> dict[str, Any]:  # type: ignore[override]
        own = {"task": "language", "tokens": len(self.material), "transformers": version("transformers")}
        return super().settings | own

    def train(self, advance: Advance, way: UnderWay) -> dict[str, Tensor]:
        """The mean losses [step] in nats, and the weights."""
        model = self.untrained().to(self.device)
        optimiser = self.optimiser(model)
        done, kept = way.resume(model, optimiser)
        advance(done)
        means, losses = ([each.to(self.device) for each in kept.get(name, ())] for name in ("means", "losses"))
        with training_attention(model, self.arm.normaliser):
            for step, passages in enumerate(self._passages()):
                if step < done:
                    continue
                for group in optimiser.param_groups:
                    group["lr"] = self.schedule.rate(step)
                # only what a text itself allows to predict, in every arm: all but its first token
                predicting = model(self.with_sink_token(passages)).logits[:, -self.sizes.length : -1]
                loss = functional.cross_entropy(predicting.flatten(0, 1), passages[:, 1:].flatten())
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), CLIPPED_NORM)
                optimiser.step()
                losses.append(loss.detach())
                if step + 1 in self.schedule.recorded:
                    means.append(torch.stack(losses).mean())
                    self.check_finite(means[-1], step + 1)
                    losses = []
                if way.due():
                    found = {"means": torch.tensor(means), "losses": torch.tensor(losses)}
                    way.keep(step + 1, model, optimiser, found)
                advance(1)
        weights = {WEIGHTS + name: tensor for name, tensor in model.state_dict().items()}
        return {"train_loss": torch.stack(means).cpu()} | weights

    def untrained(self) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            shape = {name: getattr(self.sizes, name) for name in ("vocabulary", "width", "layers", "heads")}
            model = new_llama(**shape, positions=ROOM * self.sizes.length, begin_token=self.sink_token)
        return model.eval()  # there is no dropout, so training and evaluation are the same

    def trained(self, found: dict[str, Tensor]) -> Any:
        model = self.untrained()
        weights = {name.removeprefix(WEIGHTS): each for name, each in found.items() if name.startswith(WEIGHTS)}
        model.load_state_dict(weights)
        return model.to(self.device)

    @property
    def sink_token(self) -> int:
        return self.sizes.vocabulary - 1

    def with_sink_token(self, ids: Tensor) -> Tensor:
        """Token ids [sequence, token] as this arm reads them."""
        return functional.pad(ids, (1, 0), value=self.sink_token) if self.arm.has_sink_token else ids

    def _passages(self) -> Iterator[Tensor]:
        """Token ids [batch, token] of each step: passages that begin anywhere in the text."""
        generator = torch.Generator().manual_seed(self.seed)
        windows = torch.tensor(self.material).unfold(0, self.sizes.length, 1)
        for _ in range(self.size):
            yield windows[torch.randint(len(windows), (self.schedule.batch,), generator=generator)].to(self.device)


@contextmanager
def training_attention(model: Any, normaliser: Normaliser) -> Iterator[None]:
    """Within it the model's attention has this normaliser; softmax is its own, and quicker left alone.

    The same as `attached(model, normaliser=...)`, which keeps no T x T weights and so computes them twice in training:
    for short passages this is three times quicker.
    """
    with Undo() as undo:
        if normaliser != Softmax():
            for layer in model.model.layers:
                undo.callback(NORMALISERS.pop, layer.self_attn, None)
                NORMALISERS[layer.self_attn] = normaliser
            use_implementation([model], ATTENTION, undo)
        yield


def _attention(call: AttentionCall) -> tuple[Tensor, None]:
    assert call.scale is not None  # a Llama gives it
    return causal_weights(call.query, call.key, call.scale, NORMALISERS[call.module]) @ call.value, None


def _no_mask(asked: MaskRequest) -> None:
    """The attention function knows what is later by itself."""


register(ATTENTION, _attention, _no_mask)


def _record(
    found: Comparison[LanguageRun], texts: Tensor, policies: Sequence[Policy], shown: bool | None
) -> xr.Dataset:
    measured = []
    with progress_bar(len(found.runs), "model", shown, desc="evaluation") as bar:
        for run, result in zip(found.runs, found.results, strict=True):
            measured.append(_evaluated(run, result, texts, policies))
            bar.update()
    nll = found.joined("nll", measured)
    nll[..., 0] = np.nan
    heads = ("arm", "seed", "sequence", "layer", "head")
    lengths = [texts.shape[1] + arm.has_sink_token for arm in found.arms]
    nulls = [np.mean(1 / np.arange(2, length + 1)) for length in lengths]  # 1/(i+1) over the queries i >= 1
    return xr.Dataset(
        {
            "train_loss": (("arm", "seed", "step"), found.joined("train_loss")),
            "sink_mass": (heads, found.joined("sink_mass", measured)),
            "virtual_mass": (heads, found.joined("virtual_mass", measured)),
            "nll": (("arm", "seed", "policy", "sequence", "token"), nll, {"units": "nats"}),
            "sink_null": ("arm", nulls),
            "seconds": (("arm", "seed"), found.joined("seconds")),
        },
        coords={
            **found.coordinates,
            "step": found.runs[0].schedule.recorded,
            **policy_coordinates(policies),
            **text_coordinates(list(texts)),
        },
    )


def _evaluated(
    run: LanguageRun, found: dict[str, Tensor], texts: Tensor, policies: Sequence[Policy]
) -> dict[str, np.ndarray]:
    """What a trained model does on texts [sequence, token]: losses [policy, sequence, token], and mass on the first
    token, the sink token in its arm, and on the virtual key [sequence, layer, head], NaN where there is none."""
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
