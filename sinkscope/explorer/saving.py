"""What is kept of the explorer: its view as a record, a figure and lines of code, and a picture in the notebook."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as w
import numpy as np
import xarray as xr

import sinkscope
from sinkscope import figures
from sinkscope.definition import is_found
from sinkscope.errors import SinkscopeError
from sinkscope.experiments.perplexity import policy_coordinates
from sinkscope.explorer.controller import CLOSED, Controller
from sinkscope.explorer.derived import ManyHeads
from sinkscope.explorer.display import alert
from sinkscope.explorer.results import HeadMaps, Reading, compared
from sinkscope.explorer.tables import TABLES
from sinkscope.figures.style import visible
from sinkscope.files import write_figure, write_sealed
from sinkscope.models.facts import model_attributes, token_attributes
from sinkscope.policies import PerHead
from sinkscope.record import save_record
from sinkscope.reporting.markup import inline_png
from sinkscope.seals import check_own

NEEDS_KERNEL = "The interactive explorer needs a running kernel. Run this cell to open it."
ENDED = "The explorer was closed. Run this cell to open it again."


def view_record(controller: Controller) -> xr.Dataset:
    """The map of the head shown, one cell a token, with the losses of the configuration and of the model as it is."""
    maps, model = controller.head_maps, controller.model
    if maps is None:
        raise _nothing_read(controller)
    unit, whole = maps.units[controller.unit], slice(0, maps.cells)
    length, places = len(controller.tokens), maps.first + maps.starts
    record = xr.Dataset(
        {
            "attention_map": (
                ("sequence", "layer", "head", "map_query", "map_key"),
                maps.probabilities(controller.unit, whole, whole)[None, None, None],
                {"setting": controller.name, "map_of": maps.name(controller.unit)},
            )
        },
        coords={
            "sequence": [0], "layer": [unit.layer], "head": [unit.head], "map_query": places, "map_key": places,
            "length": ("sequence", [length]), "token": np.arange(length),
            "token_text": (("sequence", "token"), np.array([controller.tokens], dtype=object)),
        },
    )  # fmt: skip
    both = [(name, each.reading) for name, each in controller.side_by_side]
    readings = [(name, reading) for name, reading in both if reading is not None and reading.is_scored]
    if readings:
        losses = np.stack([each.losses[None] for _, each in readings])
        record["nll"] = (("policy", "sequence", "token"), losses, {"units": "nats"})
        per_policy = policy_coordinates([each.configuration.policy_slot for _, each in readings])
        record = record.assign_coords(per_policy | {"policy": [name for name, _ in readings]})
    if not controller.map_options.is_plain:
        record = record.assign(_as_shown(controller))
    record.attrs = {"kind": "explored", "setting": controller.name}
    if model is not None:
        hashed = record.assign_coords(token_id=(("sequence", "token"), model.ids.cpu().numpy()[None]))
        record.attrs |= model_attributes(model.model) | token_attributes(hashed, model.model)
    return record


def _as_shown(controller: Controller) -> dict[str, xr.DataArray]:
    """The maps as they stand on the screen: their scale, their part, without the keys that a preview hides."""
    options, found = controller.map_options, {}
    for number, (caption, scale, values, queries, keys) in enumerate(controller.comparison.values()):
        dims = (f"shown_query_{number}", f"shown_key_{number}")
        places = (
            each.start + each.step * np.arange(size) for each, size in zip((queries, keys), values.shape, strict=True)
        )
        said = {"setting": caption, "scale": scale, "of": options.scale, "preview": options.preview}
        coords = dict(zip(dims, places, strict=True))
        found[f"shown_map_{number}"] = xr.DataArray(values.astype(np.float32), coords, dims, attrs=said)
    return found


def code_of(controller: Controller, text: str | None = None) -> str:
    """Lines of Python that measure what is shown, with nothing of the explorer.

    `text` is an expression for the token ids [1, token]; the ids themselves are written when None.
    """
    model, reading, dense = controller.model, controller.now.reading, controller.dense.reading
    if model is None and not controller.is_closed:
        raise SinkscopeError("a saved record was opened without its model, so there is no code that measures it again.")
    if model is None or reading is None or dense is None:
        raise _nothing_read(controller)
    configuration, maps = reading.configuration, controller.head_maps
    assert maps is not None
    name, heads = model_attributes(model.model)["model"], maps.name(controller.unit)
    chosen, made = _chosen(maps, controller.unit)
    slots = {"policy": configuration.policy_slot, "normaliser": configuration.normaliser_slot}
    lines = [
        f"# {_one_line(f'{heads} of {name}, under {configuration.name}')}",
        *_state_line(controller),
        "import torch",
        "import sinkscope",
        *_imports(slots.values()),
        "",
        f"model, tokenizer = sinkscope.load()  # or the model that was explored: {_one_line(name)}",
        f"inputs = ...  # what was explored: input_ids, {', '.join(model.beside)}"
        if model.beside
        else f"ids = {text or f'torch.tensor([{model.ids.tolist()}])'}",
        *(f"{name} = {_expression(slot)}" for name, slot in slots.items()),
        "",
    ]
    arguments, seen = "policy=policy, normaliser=normaliser", "**inputs" if model.beside else "ids"
    if configuration.is_recomputed:
        window = reading.maps.tokens
        arguments, seen = "normaliser=normaliser", f"ids[:, {window.start}:{window.stop}]"
        lines.append(f"# re-computation runs the window of token {window[-1]} as a text of its own")
    lines += [
        f"probe = sinkscope.Maps({chosen}resolution=None)",
        f"with torch.no_grad(), sinkscope.attached(model, {arguments}, probes=[probe]) as scope:",
        f"    model({seen})",
        f'attention_map = scope.array("attention_map")[0]{made}  # [query, key]',
        "",
        *_sums(controller),
        *([] if model.beside else _perplexities(dense, reading)),
    ]
    return "\n".join(lines) + "\n"


def _chosen(maps: HeadMaps, unit: int) -> tuple[str, str]:
    """Code for the heads that the map of one is made of, and for making it of theirs [layer, head, query, key]."""
    units = [maps.units[at] for at in maps.members(unit)]
    layers, heads = (sorted({getattr(each, name) for each in units}) for name in ("layer", "head"))
    if not isinstance(maps, ManyHeads):
        return f"layers={layers}, heads={heads}, ", "[0, 0]"
    made = f'.{maps.kind.removesuffix("imum")}(("layer", "head"))'
    if maps.which == "all":
        return "", made
    return f"layers={layers}, " + f"heads={heads}, " * (maps.which == "group"), made


def _sums(controller: Controller) -> list[str]:
    """Lines that make of the map what stands beside it, or a comment on it."""
    found = []
    if controller.map_options.cells == "words":
        found.append("# it was shown summed to words; sinkscope.by_span with sinkscope.Spans.words does that\n")
    if spans := controller.parts.shown:
        rows = [list(row) for row in spans.rows]
        found += [
            f"spans = sinkscope.Spans({list(spans.names)!a}, {rows})",
            "is_in = spans.numbers(len(attention_map))[:, None] == range(len(spans))",
            "mass = is_in.T @ (attention_map.values @ is_in) / is_in.sum(0)[:, None]  # [query_span, key_span]",
            "",
        ]
    return found


def _state_line(controller: Controller) -> list[str]:
    """A comment with which the explorer opens on the same view; none where its setting is in no short text."""
    try:
        return [f"# in the explorer: sinkscope.explore(..., state={controller.state!r})"]
    except SinkscopeError:
        return []


def _nothing_read(controller: Controller) -> SinkscopeError:
    waiting = "nothing was read yet, so there is nothing to save; wait for the first map"
    return SinkscopeError(f"{CLOSED if controller.is_closed else waiting}.")


def _perplexities(dense: Reading, now: Reading) -> list[str]:
    """Lines that measure the perplexities, dense and under the configuration, over the tokens compared."""
    places, configuration = compared(dense, now), now.configuration
    is_sample = configuration.is_recomputed and len(places)
    tokens = places.tolist() if is_sample else f"slice({places[0] if len(places) else 1}, None)"
    measured = {"dense": "[sinkscope.Dense()]"}
    if not configuration.is_baseline:
        measured["changed"] = "[policy], normaliser=normaliser" + ", samples=None" * (configuration.is_recomputed)
    lines = [f"tokens = {tokens}  # whose losses are compared"]
    for name, arguments in measured.items():
        lines.append(f"{name} = sinkscope.perplexity(model, ids, {arguments}).sel(token=tokens)")
        lines.append(f'print("{name}", float(sinkscope.ppl({name})[0]))')
    return lines


def save_view(controller: Controller, folder: str | os.PathLike[str], text: str | None = None) -> list[Path]:
    """Write the view as view.pdf, .svg and .png, its record as view.nc and, with a model, its code as view.py."""
    record, folder = view_record(controller), Path(os.path.expanduser(folder))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise SinkscopeError(f"cannot write to {folder}: {problem.strerror or problem}.") from problem
    picture, data, code = folder / "view", folder / "view.nc", folder / "view.py"
    check_own(code, "the code")
    files = [*write_figure(figures.explored(record), picture), save_record(record, data)]
    if controller.model is not None:
        write_sealed(code, code_of(controller, text).encode("utf-8", "backslashreplace"), "the code")
        files.append(code)
    return files


def _one_line(words: str) -> str:
    """Words for a comment, which a line break of any kind would end."""
    return visible(words, spaces=False)


def _has_short_name(cls: type) -> bool:
    return getattr(sinkscope, cls.__name__, None) is cls


def _parts(slot: Any) -> list[Any]:
    return [slot, *slot.parts] if isinstance(slot, PerHead) else [slot]


def _imports(slots: Iterable[Any]) -> list[str]:
    """Lines for classes without a short name: imports, or a comment for those that only a notebook has."""
    return [
        f"# here goes the definition of your class {_one_line(each.__qualname__)}"
        if each.__module__ == "__main__" or not each.__qualname__.isidentifier() or not is_found(each, each.__module__)
        else f"from {each.__module__} import {each.__name__}"
        for each in dict.fromkeys(type(part) for slot in slots if slot is not None for part in _parts(slot))
        if not _has_short_name(each)
    ]


def _expression(slot: Any) -> str:
    text = repr(slot).replace("-inf", 'float("-inf")')
    names = [type(part).__name__ for part in _parts(slot) if _has_short_name(type(part))]
    return re.sub(rf"(?<![\w.])({'|'.join(names)})\(", r"sinkscope.\1(", text) if names else text


def static_picture(controller: Controller) -> str:
    """HTML: the view as it is now, in a fold, with its configuration; a sentence where there is none yet."""
    try:
        picture = inline_png(figures.explored(view_record(controller)), dpi=110)
    except SinkscopeError as error:
        return f"<p>{escape(NEEDS_KERNEL)} ({escape(str(error))})</p>"
    caption = escape(controller.comparison.settled.caption)
    return (
        f"<details><summary>A still picture of the explorer, for reading without a kernel: {caption}</summary>"
        f'<img alt="attention map and losses: {caption}" style="max-width:100%" src="{picture}">'
        "</details>"
    )


class SaveBar(w.HBox):
    """Where to save, the buttons, and what came of it.

    `save` writes the view into a folder and gives the files, `save_csv` one of `TABLES` to a path.
    """

    def __init__(
        self, save: Callable[[str | os.PathLike[str]], list[Path]], save_csv: Callable[[Path, str], Path]
    ) -> None:
        self._save, self._save_csv = save, save_csv
        self.folder = w.Text(value="explored", description="folder", layout={"width": "220px"})
        self.folder.tooltip = "where the view and the tables are written"
        self.button = w.Button(
            description="save view", tooltip="write figure, record and code into the folder", layout={"width": "100px"}
        )
        self.status = w.HTML()
        self.table = w.Dropdown(options=list(TABLES.items()), description="table", layout={"width": "210px"})
        self.table.tooltip = (
            "what is saved as CSV: the row of the chosen query, the part of the map shown, or all heads"
        )
        self.csv = w.Button(
            description="save CSV", tooltip="write the table into the folder", layout={"width": "100px"}
        )
        self.button.on_click(lambda _: self._do(lambda folder: self._save(folder)))
        self.csv.on_click(lambda _: self._do(lambda folder: [self._save_csv(folder / self._name, self.table.value)]))
        parts = [self.folder, self.button, self.table, self.csv, self.status]
        super().__init__(parts, layout={"flex_flow": "row wrap"})

    @property
    def _name(self) -> str:
        return f"{self.table.value}.csv"

    def _do(self, save: Callable[[Path], list[Path]]) -> None:
        try:
            files = save(Path(os.path.expanduser(self.folder.value or ".")))
        except SinkscopeError as error:
            self.status.value = alert(str(error))
            return
        self.status.value = "saved " + ", ".join(escape(str(file)) for file in files)
