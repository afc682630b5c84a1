"""Arguments that a call takes: by what its parameter is called, or by what is called where that is not enough."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sinkscope
from sinkscope.experiments.intervention import Conditions
from sinkscope.figures import marks
from tests.fuzz import world
from tests.fuzz.subjects import Subject, public
from tests.support import talking
from tests.support.synthetic import synthetic_maps

CHAT = [{"role": "user", "content": "the cat"}]

Make = Callable[[Path], Any]
"""From the folder of a case to a value of its own."""


def _written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def _record_file(folder: Path) -> Path:
    return sinkscope.save_record(world.record("measured"), folder / "given.nc")


def _cache_file(folder: Path) -> Path:
    with sinkscope.SinkCache(world.model(), 2, 8) as cache:
        world.read(cache)
        return cache.save(folder / "given.safetensors")


def _report() -> Any:
    return sinkscope.Report(world.record("measured"), items=sinkscope.ITEMS[:2])


def _report_folder(folder: Path) -> Path:
    return _report().save(folder / "given", progress=False)


def _pair() -> tuple[Any, Any]:
    return world.record("measured").assign_attrs(model="m"), world.record("collapsing").assign_attrs(model="m")


def _captured() -> Any:
    scope = sinkscope.capture(world.model())
    with scope, torch.no_grad():
        world.model()(world.ids())
    return scope


def _drawing() -> marks.Drawing:
    return marks.Drawing([marks.Panel([marks.Line([1, 2], [3, 4])])], {})


def record(name: str) -> Make:
    return lambda _: world.record(name)


BY_NAME: dict[str, Make] = {
    "model": lambda _: world.model(),
    "tokenizer": lambda _: world.tokenizer(),
    "ids": lambda _: world.ids(),
    "progress": lambda _: False,
    "resamples": lambda _: 20,
    "samples": lambda _: 4,
    "seed": lambda _: 1,
    "policy": lambda _: sinkscope.SinkWindow(2, 8),
    "policies": lambda _: [sinkscope.Dense(), sinkscope.SinkWindow(2, 8)],
    "probes": lambda _: [sinkscope.SinkMass(1)],
    "path": lambda folder: folder / "out.nc",
    "directory": lambda folder: folder / "out",
    "folder": lambda folder: folder / "out",
    "checkpoint": lambda folder: folder / "out",
    "fname": lambda folder: folder / "out.svg",
    "text": lambda _: world.PROSE,
    "prompt": lambda _: "the cat",
    "max_new_tokens": lambda _: 3,
    "tokens": lambda _: 64,
    "length": lambda _: 16,
    "first": lambda _: 1,
    "keys": lambda _: (0, 2),
    "size": lambda _: 8,
    "sinks": lambda _: 2,
    "window": lambda _: 8,
    "cache_size": lambda _: 8,
    "cache_sizes": lambda _: 8,
    "start": lambda _: 10,
    "saved": lambda _: [_pair()],
    "query": lambda _: torch.randn(1, 2, 8, 4),
    "key": lambda _: torch.randn(1, 2, 8, 4),
    "value": lambda _: torch.randn(1, 2, 8, 4),
    "parts": lambda _: (torch.randn(1, 2, 8, 4), torch.randn(1, 2, 8)),
    "array": lambda _: synthetic_maps(1, 2, 2, 24),
    "drawing": lambda _: _drawing(),
    "x": lambda _: [1.0, 2.0],
    "y": lambda _: [1.0, 2.0],
    "row": lambda _: 1,
    "timeout": lambda _: 5,
    "name": lambda _: "name",
    "title": lambda _: "title",
    "records": lambda _: world.record("measured"),
    "distances": lambda _: 8,
    "passage": lambda _: 4,
    "passages": lambda _: 2,
    "doses": lambda _: (-1.0, 0.0),
    "groups": lambda _: 1,
    "repeats": lambda _: 1,
    "types": lambda _: "no-such-type",
    "n_jobs": lambda _: 1,
    "spans": lambda _: sinkscope.Spans(["a", "b"], [(0, 4), (4, 16)]),
    "values": lambda _: world.record("measured")["received"],
    "steps": lambda _: 2,
    "width": lambda _: 16,
    "batch": lambda _: 4,
    "evaluated": lambda _: 4,
    "every": lambda _: 1,
    "seeds": lambda _: 0,
}

BY_SUBJECT: dict[str, dict[str, Make]] = {
    "sweep": {"grid": lambda _: world.grid()},
    "Grid": {"models": lambda _: {"tiny": world.model()}, "texts": lambda _: {"words": world.ids()},
             "experiments": lambda _: "perplexity", "policies": lambda _: ["dense", "sinks"]},
    "Grid.of": {"given": lambda _: world.grid()},
    "sweep_table": {"folder": lambda _: world.run_folder()},
    "list_cells": {"folder": lambda _: world.run_folder()},
    "sweep_losses": {"folder": lambda _: world.run_folder(), "model": lambda _: "tiny", "text": lambda _: "words"},
    "compare_cells": {"one": lambda _: world.run_folder(), "other": lambda _: world.run_folder()},
    "text_of_tokens": {"ids": lambda _: world.said()},
    "Spans": {"names": lambda _: ["a", "b"], "rows": lambda _: [(0, 2), [(2, 4), (6, 9)]]},
    "Spans.of_labels": {"labels": lambda _: ["a", "", "b"]},
    "Spans.at": {"ids": lambda _: world.said(), "offsets": lambda _: {"a": (4, 7)}},
    "Spans.matching": {"ids": lambda _: world.said(), "patterns": lambda _: "cat"},
    "Spans.documents": {"ids": lambda _: world.said(), "documents": lambda _: ["the cat"]},
    "Spans.chat": {"tokenizer": lambda _: talking.tokenizer(), "messages": lambda _: CHAT,
                   "ids": lambda _: talking.tokenizer().apply_chat_template(CHAT, return_dict=False)},
    **{f"Spans.{name}": {"ids": lambda _: world.said()} for name in ("words", "sentences", "special", "images")},
    "load": {"source": lambda _: world.saved_model()},
    "read_text": {"source": lambda folder: _written(folder, "text.txt", world.PROSE)},
    "read_tokens": {"text": lambda _: world.PROSE, "start": lambda _: 0},
    "open_record": {"path": _record_file},
    "open_table": {"path": lambda folder: _written(folder, "table.csv", "policy,cache\ndense,8\n")},
    "save_record": {"record": record("measured")},
    "sequences": {"ids": lambda _: world.ids(1, 200)},
    "segments": {"ids": lambda _: world.ids(1, 200)},
    "read_segments": {"source": lambda folder: _written(folder, "text.txt", world.PROSE), "count": lambda _: 2},
    "losses_from": {"token": lambda _: 3},
    "intervene": {"ids": lambda _: world.ids(2, 100), "interventions": lambda _: None},
    "SetMassive": {"magnitude": lambda _: 6.0, "ratio": lambda _: 2.0},
    "Shift": {"tokens": lambda _: 4},
    "predictability": {"probes": lambda _: ()},
    "SinkCache.load": {"path": _cache_file},
    "SinkCache.save": {"path": lambda folder: folder / "out.safetensors"},
    "SinkCache.crop": {"tokens_to_remove": lambda _: 1},
    "ScoredCache.crop": {"tokens_to_remove": lambda _: 1},
    "ScoredCache": {"policy": lambda _: sinkscope.TOVA(8)},
    "attend_split": {"chunk": lambda _: 4},
    "attention_maps": {"ids": lambda _: world.ids(1)},
    "Dose": {"bias": lambda _: -1.0, "values": lambda _: "zeroed"},
    "Evict": {"keys": lambda _: (0,)},
    "EvictRecent": {"recent": lambda _: 4},
    "head_split": {"gates": lambda _: world.gates(), "ids": lambda _: world.ids(1, 60)},
    "save_head_gates": {"gates": lambda _: world.gates(), "path": lambda folder: folder / "gates.tsv"},
    "sink_values": {"kinds": lambda _: ("zero", "other text")},
    "perturbation_spread": {"first": lambda _: "kept"},
    "reach": {"sinks": lambda _: 1, "windows": lambda _: 8},
    "reach_table": {"sinks": lambda _: 1, "window": lambda _: 16},
    "head_gates": {"sinks": lambda _: 1, "window": lambda _: 16},
    "Reach": {"sinks": lambda _: (1, 2), "windows": lambda _: 8},
    "LearnedSink": {"logit": lambda _: 0.0},
    "HeavyHitters": {"budget": lambda _: 8, "recent": lambda _: 4},
    "TOVA": {"budget": lambda _: 8},
    "PerHead.from_table": {"table": lambda _: np.array([[0.1], [0.8]])},
    "PerHead": {"policies": lambda _: {(0, 1): sinkscope.Window(8)}},
    "SinkWindow": {"values": lambda _: "zeroed"},
    "Variable": {"dims": lambda _: ("query",)},
    **{
        f"{name}.draws": {"conditions": lambda _: Conditions()}
        for name in ("EvictKeys", "SetMassive", "Repeat", "ReplaceTokens", "Intervention")
    },
    "Trial": {"tokens": lambda _: world.ids(1)[0], "policy": lambda _: None},
    "recall": {"ids": lambda _: world.ids(1, 120)},
    "needle_recall": {"ids": lambda _: world.ids(1, 120), "lengths": lambda _: 100, "depths": lambda _: 0.5,
                      "trials": lambda _: 2, "values": lambda _: None},
    "key_value_recall": {"pairs": lambda _: 2, "depths": lambda _: 0.5, "trials": lambda _: 2,
                         "values": lambda _: None},
    "stream_recall": {"lines": lambda _: 4, "every": lambda _: 2, "back": lambda _: 1, "trials": lambda _: 2,
                      "values": lambda _: None},
    "atlas": {"models": lambda _: [_report()], "folder": lambda _: None},
    "compare_reports": {"one": lambda _: _report(), "other": lambda _: _report()},
    "run_timing": {"policies": lambda _: "dense", "ids": lambda _: world.ids(1, 64)},
    "time_per_token": {"policies": lambda _: "dense", "ids": lambda _: world.ids(1, 64)},
    "run_ablation": {"policies": lambda _: (), "folder": lambda _: None},
    "perplexity": {"checkpoint": lambda _: None},
    "interval": {"dim": lambda _: "passage", "values": lambda _: world.record("recall")["nll"].mean("place")},
    "from_maps": {"tokens": lambda _: None},
    "uniform_mass": {},
    "stream": {"cache": lambda _: None},
    "Conversation.ask": {"text": lambda _: "the cat"},
    "explore": {"text": lambda _: world.ids(1)[0]},
    "Report": {"items": lambda _: sinkscope.ITEMS[:2]},
    "Report.open": {"directory": _report_folder, "items": lambda _: sinkscope.ITEMS[:2]},
    "report": {
        "text": lambda folder: _written(folder, "text.txt", world.PROSE), "sequences": lambda _: 2,
        "streaming": lambda _: False, "softmax": lambda _: False,
        "items": lambda _: sinkscope.ITEMS[:2],
    },
    "Plan": {},
    "Plan.of": {"given": lambda _: {"epsilon": 0.2}},
    "Plan.save": {"path": lambda folder: folder / "plan.yaml"},
    "Table": {"make": lambda _: sinkscope.mass_by_layer},
    "Item": {
        "name": lambda _: "own", "record": lambda _: "text", "table": lambda _: sinkscope.mass_by_layer,
        "figure": lambda _: None, "probes": lambda _: (),
    },
    "Item.served_by": {"records": lambda _: {"text": world.record("measured")}},
    "Section": {},
    "Scope.array": {"variable": lambda _: "sink_mass"},
    "lab.Arm": {},
    "lab.bigram_backcopy": {
        "arms": lambda _: "softmax", "layers": lambda _: 1, "length": lambda _: 12, "folder": lambda _: None,
    },
    "lab.language_model": {
        "arms": lambda _: "softmax", "layers": lambda _: 1, "length": lambda _: 12, "folder": lambda _: None,
        "heads": lambda _: 1, "cache_size": lambda _: 4, "sinks": lambda _: (0, 1),
    },
    "ppl_table": {},
    "Explorer.save_to": {"folder": lambda folder: folder / "view"},
    "Explorer.read": {"text": lambda _: "the cat sat", "length": lambda _: 3},
    "Explorer.generate": {"prompt": lambda _: "the cat sat", "max_new_tokens": lambda _: 2},
    "Explorer.save_page": {"path": lambda folder: folder / "page.html", "settings": lambda _: []},
    "figures.figure": {"describe": lambda _: lambda record: _drawing()},
    "figures.marks.ColourBar": {"label": lambda _: "label", "map": lambda _: "probability"},
    "figures.marks.Image": {
        "cells": lambda _: np.ones((2, 3)), "bar": lambda _: marks.ColourBar("label", "probability"),
    },
    "figures.marks.Reference": {"x": lambda _: 1.0, "y": lambda _: None},
    "figures.marks.Text": {"x": lambda _: 1.0, "y": lambda _: 1.0, "text": lambda _: "a"},
    "figures.marks.Panel": {
        "marks": lambda _: [marks.Line([1, 2], [3, 4])], "x": lambda _: marks.Axis(), "y": lambda _: marks.Axis(),
    },
    "figures.marks.Drawing": {
        "panels": lambda _: _drawing().panels, "attributes": lambda _: {}, "width": lambda _: 3.0,
    },
    "figures.marks.SecondAxis": {"label": lambda _: "label", "factor": lambda _: 2.0, "ticks": lambda _: [1.0]},
    "figures.marks.Bars": {"width": lambda _: 1.0},
    "figures.marks.Look": {"width": lambda _: 1.0, "size": lambda _: 2.0},
}  # fmt: skip

READS: dict[str, str] = {
    "ablation_table": "ablation", "timing_table": "timing", "dose_table": "dose", "intervention_table": "interventions",
    "amplification": "measured", "eviction_by_layer": "measured", "image_mass": "image", "visual_sinks": "image",
    "visual_sinks_table": "image", "figures.image_grid": "image", "image_grid": "image", "recall_table": "recall",
    "collapse_table": "collapse", "losses_from": "collapsing", "ppl": "collapsing", "ppl_table": "collapsing",
    "factorial_table": "collapse", "predictability_bins": "predictability", "predictability_table": "predictability",
    "lab.emergence_summary": "emergence table", "lab.emergence_table": "emergence", "lab.head_masses": "language",
    "lab.language_table": "language", "lab.language_verdict": "language", "figures.ablation": "ablation table",
    "figures.collapse": "collapse", "figures.comparison": "comparison table", "figures.decode_cost": "timing table",
    "figures.dose_response": "dose", "figures.effects": "interventions", "figures.emergence": "emergence",
    "figures.explored": "view", "figures.forced_mass": "measured", "figures.language_emergence": "language",
    "figures.log_perplexity": "collapsing", "figures.predictability": "predictability", "figures.recall": "recall",
    "strength_and_collapse": "many models", "accuracy_table": "answers", "figures.accuracy": "answers",
    "familiarity_table": "losses", "recited": "losses", "span_mass": "spanned", "span_table": "spanned",
    "figures.span_mass": "spanned",
    "purposes": "purposes", "purpose_sensitivity": "purposes", "depth_table": "purposes", "spike_life": "purposes",
    "spike_overlap": "purposes", "reach": "purposes", "reach_table": "purposes", "head_gates": "purposes",
    "gates_table": "gated", "figures.purposes": "purposes", "figures.depth": "purposes", "figures.reach": "purposes",
    "figures.head_split": "head split",
    "secondary_sinks": "secondary", "figures.secondary_sinks": "secondary", "tags_table": "tags",
    "figures.sink_tags": "tags", "spread_table": "perturbed", "figures.perturbation_spread": "perturbed",
    "rollout": "mixed", "figures.rollout": "mixed",
}  # fmt: skip
"""What record or table a reader reads, where it is not what `measure` makes."""
RECORDS = ("record", "curve", "table")


def ordinary(subject: Subject, parameter: inspect.Parameter) -> Make | None:
    """A value that goes well; None where the parameter may be left out, or nothing is known that would."""
    if parameter.kind is parameter.VAR_KEYWORD:
        return None
    own = BY_SUBJECT.get(subject.name, {})
    if parameter.name in own:
        return own[parameter.name]
    if parameter.name in RECORDS:
        return record(READS.get(subject.name.removesuffix(".describe"), "measured"))
    if parameter.name in BY_NAME and (parameter.default is parameter.empty or not _is_data(subject)):
        return BY_NAME[parameter.name]
    return None


def _is_data(subject: Subject) -> bool:
    """Whether the fields are numbers of a figure: those left out are left out."""
    return subject.name.startswith("figures.marks") or subject.name in (
        "Item",
        "Plan",
        "Section",
        "Table",
        "figures.norms",
    )


def instance(subject: Subject, folder: Path) -> Any:
    """Something of the class that a method is of."""
    assert subject.owner is not None
    name = subject.owner.__name__
    if name == "Scope":
        return _captured()
    if name == "Explorer":
        app = sinkscope.explore(world.model(), world.tokenizer(), world.ids(1)[0])
        app.wait(20)
        return app
    if name == "PaperFigure":
        return sinkscope.figures.sink_mass_heatmap(world.record("measured"))
    known = {said.rpartition(".")[2]: said for said in public()}
    maker = Subject(known[name], subject.owner, tuple(inspect.signature(subject.owner).parameters.values()))
    made = subject.owner(**ordinary_arguments(maker, folder))
    if name in ("SinkCache", "ScoredCache"):
        world.read(made)
    return made


def ordinary_arguments(subject: Subject, folder: Path) -> dict[str, Any]:
    made = {each.name: ordinary(subject, each) for each in subject.parameters}
    return {name: make(folder) for name, make in made.items() if make is not None}
