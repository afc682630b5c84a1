"""A plan against the call that follows it: what may not differ, and what the report says of it."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from sinkscope.arguments import several
from sinkscope.errors import SinkscopeError, shown
from sinkscope.experiments.grid import DEMO, LOADING
from sinkscope.reporting.plan import Plan, check_source, text_entries

if TYPE_CHECKING:
    from torch import Tensor, nn

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
        self.plan.hashes()
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
            self.attributes["text_sha256"] = ", ".join(self.plan.hashes(tokens))

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
