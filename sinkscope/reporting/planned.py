"""A plan against the call that follows it: what may not differ, and what the report says of it."""

from __future__ import annotations

import datetime
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from sinkscope.arguments import several
from sinkscope.errors import SinkscopeError, shown
from sinkscope.experiments.grid import DEMO, LOADING, named_policies
from sinkscope.reporting.plan import Plan, text_entries
from sinkscope.sampling import segments, sequences
from sinkscope.texts import text_name, text_pieces

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sinkscope.policies import Policy

BESIDE = ("device", "device_map", "trust_remote_code")  # how a model is loaded, whatever a plan says of its numbers


class Planned:
    """What a report follows: the plan that it was given, or one made of its arguments.

    Args:
        plan: as `Plan.of` takes it; None where there is none.
        asked: arguments by the names of the plan's parts; what is None was not given.
        loading: options of `load`.
        reads_text: whether there is a text to read, and not what a processor made.

    Attributes:
        plan: with what was asked for.
        attributes: of the records of a report that was given a plan: what it says, its hash, and the time.

    Raises:
        SinkscopeError: arguments that say otherwise than the plan, or a text that is not there or another one.
    """

    def __init__(self, plan: Any, asked: Mapping[str, Any], loading: Mapping[str, Any], reads_text: bool) -> None:
        self.attributes: dict[str, str] = {}
        self.is_given = plan is not None
        if not self.is_given:
            own = {name: value for name, value in asked.items() if value is not None and name != "model"}
            self.plan = Plan(**own)
            for source in self.plan.sources if reads_text else ():
                check_source(source)
            return
        if not reads_text:
            raise SinkscopeError("A plan names the texts to read, and what a processor made is none: leave one out.")
        self.plan = Plan.of(plan)
        _check_call(self.plan, asked, loading)
        hashes(self.plan)
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        self.attributes = {"plan": self.plan.canonical, "plan_sha256": self.plan.sha256, "plan_read": now}

    def load_arguments(self, model: Any, loading: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """What `load` is to be given."""
        planned = (self.plan.model or {}) if self.is_given else {}
        if model is None and planned:
            model = None if planned["source"] == DEMO else planned["source"]
        if not (model is None or isinstance(model, (str, os.PathLike))):
            return model, dict(loading)
        return model, {name: planned[name] for name in LOADING if name in planned} | dict(loading)

    def check_read(self, model: nn.Module, tokens: Sequence[Tensor]) -> None:
        """Raise SinkscopeError for another model or other texts than planned, and note the hashes of these."""
        if self.is_given:
            _check_model(self.plan, model)
            self.attributes["text_sha256"] = ", ".join(hashes(self.plan, tokens))

    def notes(self, records: Mapping[str, xr.Dataset], with_own: bool) -> list[str]:
        """What a report says of the plan that it was given.

        Args:
            records: of the report.
            with_own: whether it has items or sections that are not the usual ones.
        """
        if not self.is_given:
            return []
        told = self.attributes
        note = (
            f"Planned: SHA-256 {told['plan_sha256']} of the plan, read {told['plan_read']}, before anything was "
            f"measured; of the text{'s' * (',' in told['text_sha256'])} {told['text_sha256']}."
        )
        notes = [note + " Items or sections of one's own are no part of a plan." * with_own]
        if "perplexity" in records:
            used = int(records["perplexity"]["cache_size"].max())
            less = f"Caches keep {used:,} tokens, not {self.plan.cache:,}: a text or the model is too short."
            notes += [less] * (used != self.plan.cache)
        return notes


def _check_call(plan: Plan, asked: Mapping[str, Any], loading: Mapping[str, Any]) -> None:
    """Raise SinkscopeError where arguments of a call say otherwise than the plan."""
    for name, value in asked.items():
        own = getattr(plan, name)
        if name == "texts" and value is not None:
            value = [entry["source"] for each in several(value, name) for entry in text_entries(each)]
            own = [entry["source"] for entry in own]
        if name == "model":
            if own is None or not isinstance(value, (str, os.PathLike)):
                continue
            value, own = os.fspath(value), own["source"]
        if value is not None and value != own:
            raise SinkscopeError(
                f"{name}={shown(value)} contradicts the plan, which says {shown(own)}: leave it out, or change "
                "the plan."
            )
    for name, value in loading.items() if plan.model is not None else ():
        if value != plan.model.get(name) and (name in plan.model or name not in BESIDE):
            says = f"says {shown(plan.model[name])}" if name in plan.model else "does not say so"
            raise SinkscopeError(
                f"{name}={shown(value)} contradicts the plan, which {says}: leave it out, or change the plan."
            )


def _check_model(plan: Plan, model: nn.Module) -> None:
    """Raise SinkscopeError for another model than the plan is for, by its weights, or else by its name."""
    from sinkscope.hf.gguf import demo_model_file
    from sinkscope.models.facts import model_attributes
    from sinkscope.models.weights import weights_hash

    if plan.model is None:
        return
    known = model_attributes(model)
    if (dtype := plan.model.get("dtype")) not in (None, known["dtype"]):
        raise SinkscopeError(f"the plan is for {dtype}, and this model is in {known['dtype']}: load it in {dtype}.")
    if "weights" in plan.model:
        if (found := weights_hash(model)) != plan.model["weights"]:
            raise SinkscopeError(
                f"the plan is for a model whose weights have the hash {plan.model['weights'][:16]}..., and those of "
                f"this one have {found[:16]}...: give that model, or make a plan for this one."
            )
        return
    source = str(demo_model_file()) if plan.model["source"] == DEMO else plan.model["source"]
    if known["model"] not in (source, Path(source).name):
        raise SinkscopeError(
            f"the plan is for {shown(plan.model['source'])}, and this model is {shown(known['model'])}: give that "
            "model, or make a plan for this one."
        )


def ways(plan: Plan, cache: int) -> list[Policy]:
    """The policies at a cache size."""
    return named_policies(plan.policies, cache, plan.sinks)


def cut(plan: Plan, text: Tensor, length: int, count: int, front: Sequence[int]) -> Tensor:
    """Sequences [sequence, token] of a text [token], each with the tokens in front."""
    if plan.sequences is not None:
        return sequences(text, length, count, bos=front)
    return segments(text, length, count, starts=plan.starts, seed=plan.seed, bos=front)


def other_front(rows: Tensor, front: Sequence[int], tokenizer: Any) -> Tensor | None:
    """Sequences [sequence, token] without their tokens in front, or with a BOS token where there are none; None for a
    tokenizer that has none."""
    if front:
        return rows[:, len(front) :]
    bos = getattr(tokenizer, "bos_token_id", None)
    return None if bos is None else rows.roll(1, 1).index_fill(1, rows.new_tensor([0]), bos)


def numbered(record: xr.Dataset, every: int) -> xr.Dataset:
    """The record of every second, third, .. of some sequences, numbered as they are among all of them."""
    return record.assign_coords(sequence=every * np.arange(record.sizes["sequence"]))


def how_read(plan: Plan, count: int) -> str:
    """What so many sequences of each text are, in words."""
    what = {"spaced": "segments spaced over", "random": "random segments of"}[plan.starts]
    if plan.segments is None:
        what = "consecutive sequences from the start of"
    if count == 1:
        what = "sequence of"
    texts = "the text" if len(plan.texts) == 1 else f"each of {len(plan.texts)} texts"
    return f"{count} {what} {texts}"


def hashes(plan: Plan, tokens: Sequence[Tensor] | None = None) -> list[str]:
    """The SHA-256 of each text: of the bytes of a file, of the characters of a demo text in UTF-8, and of the token
    ids read (64 bits each, little-endian) of a dataset, empty while they are not.

    Raises:
        SinkscopeError: a text that cannot be read, or is another than the plan says.
    """
    found: list[str] = []
    for place, (text, source) in enumerate(zip(plan.texts, plan.sources, strict=True)):
        has = _hash_of(source, None if tokens is None else tokens[place])
        if has and text.get("sha256", has) != has:
            raise SinkscopeError(
                f"{text_name(source)} is another text than the plan says: its SHA-256 is {has[:16]}..., not "
                f"{text['sha256'][:16]}...; give that text, or change the plan."
            )
        found.append(has)
    return found


def plan_of_call(model: Any, texts: Any, loading: Mapping[str, Any], plan: Any = None, **asked: Any) -> Plan:
    """The plan of a call of `report` with these arguments, with the hashes of model and texts as they are now."""
    from sinkscope.hf.loading import load

    every = {each.name: None for each in fields(Plan)} | asked | {"model": model, "texts": texts}
    planned = Planned(plan, every, loading, reads_text=True)
    source, options = planned.load_arguments(model, loading)
    loaded, _ = load(source, **options)
    found = planned.plan
    if found.model is None:
        told = {name: loading[name] for name in LOADING if name in loading}
        found = replace(found, model={"source": DEMO if model is None else model, **told})
    return pinned(found, loaded)


def pinned(plan: Plan, model: nn.Module) -> Plan:
    """The same plan, with the hashes of this model's weights and of the texts as they are now."""
    from sinkscope.models.weights import weights_hash

    told = zip(plan.texts, hashes(plan), strict=True)
    texts = [text | ({"sha256": has} if has else {}) for text, has in told]
    parts = plan.content | {"model": (plan.model or {"source": DEMO}) | {"weights": weights_hash(model)}}
    return Plan(**parts | {"texts": texts})


def check_source(source: str | None) -> None:
    """Raise SinkscopeError for a file that is no text; a dataset is opened when it is read."""
    if source is None or not source.startswith("hf:"):
        next(text_pieces(source))


def _hash_of(source: str | None, tokens: Tensor | None) -> str:
    if source is not None and source.startswith("hf:"):
        return "" if tokens is None else hashlib.sha256(tokens.numpy().astype("<i8").tobytes()).hexdigest()
    check_source(source)
    if source is not None and not source.startswith("demo:"):
        with Path(source).expanduser().open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256("".join(text_pieces(source)).encode()).hexdigest()
