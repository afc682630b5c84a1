"""The view as a record, a figure, and the lines of code that make it again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from sinkscope.core.provenance import model_attributes, token_attributes
from sinkscope.errors import SinkscopeError
from sinkscope.explorer.comparison import compared
from sinkscope.explorer.controller import Controller
from sinkscope.explorer.setting import Setting
from sinkscope.files import replacing
from sinkscope.record import save_record


def view_record(controller: Controller) -> xr.Dataset:
    """The map of the head shown, one cell a token, with the losses of the setting and of the model as it is.

    Raises:
        SinkscopeError: nothing was read yet.
    """
    maps, reading, dense = controller.maps, controller.now.reading, controller.dense.reading
    if maps is None:
        raise SinkscopeError("nothing was read yet, so there is nothing to save; wait for the first map.")
    unit, whole = maps.units[controller.unit], slice(0, maps.cells)
    length, places = len(controller.tokens), maps.first + maps.starts
    record = xr.Dataset(
        {
            "attention_map": (
                ("sequence", "layer", "head", "map_query", "map_key"),
                maps.probabilities(controller.unit, whole, whole)[None, None, None],
                {"setting": controller.name},
            )
        },
        coords={
            "sequence": [0], "layer": [unit.layer], "head": [unit.head], "map_query": places, "map_key": places,
            "length": ("sequence", [length]), "token": np.arange(length),
            "token_text": (("sequence", "token"), np.array([controller.tokens], dtype=object)),
        },
    )  # fmt: skip
    if reading is not None and dense is not None:
        shown = [("dense", dense)] + ([] if reading is dense else [(controller.name, reading)])
        losses = np.stack([each.losses[None] for _, each in shown])
        record["nll"] = (("policy", "sequence", "token"), losses, {"units": "nats"})
        record = record.assign_coords(policy=[name for name, _ in shown])
    return record.assign_attrs(kind="explored", setting=controller.name, **_provenance(controller, record))


def code_of(controller: Controller, text: str | None = None) -> str:
    """Lines of Python that measure what is shown, with nothing of the explorer.

    Args:
        text: an expression for the token ids [1, token]; the ids themselves when None.
    """
    if controller.model is None or controller.now.reading is None:
        raise SinkscopeError("a saved record was opened without its model, so there is no code that measures it again.")
    setting, unit = controller.now.reading.setting, controller.units[controller.unit]
    name = model_attributes(controller.model.model)["model"]
    ids = text or f"torch.tensor([{controller.model.ids.tolist()}])"
    weights = "None" if setting.weights is None else _expression(setting.weights)
    probe = f"sinkscope.Maps(layers=[{unit.layer}], heads=[{unit.head}], resolution=None)"
    lines = [
        f"# {unit} of {name}, under {setting.name}",
        "import torch",
        "import sinkscope",
        "",
        f"model, tokenizer = sinkscope.load()  # or the model that was explored: {name}",
        f"ids = {ids}",
        f"policy = {_expression(setting.policy)}",
        f"normaliser = {weights}",
        "",
    ]
    if setting.kind == "recompute":
        first, stop = controller.now.reading.maps.first, controller.now.reading.maps.first
        stop += controller.now.reading.maps.length
        slots, seen = "normaliser=normaliser", f"ids[:, {first}:{stop}]"
        lines.append(f"# re-computation runs the window of token {stop - 1} as a text of its own")
    else:
        slots, seen = "policy=policy, normaliser=normaliser", "ids"
    lines += [
        f"probe = {probe}",
        f"with torch.no_grad(), sinkscope.attached(model, {slots}, probes=[probe]) as scope:",
        f"    model({seen})",
        'attention_map = scope.array("attention_map")[0, 0, 0]  # [query, key]',
        "",
        *_perplexities(controller, setting),
    ]
    return "\n".join(lines) + "\n"


def _perplexities(controller: Controller, setting: Setting) -> list[str]:
    """Lines that measure the perplexities of the model as it is and under the setting, over the tokens compared."""
    dense, now = controller.dense.reading, controller.now.reading
    assert dense is not None and now is not None
    places = compared(dense, now)
    is_sample = setting.kind == "recompute" and len(places)
    tokens = places.tolist() if is_sample else f"slice({places[0] if len(places) else 1}, None)"
    measured = {"dense": "[sinkscope.Dense()]"}
    if not setting.is_baseline:
        measured["changed"] = "[policy], normaliser=normaliser" + ", samples=None" * (setting.kind == "recompute")
    lines = [f"tokens = {tokens}  # whose losses are compared"]
    for name, given in measured.items():
        lines.append(f"{name} = sinkscope.perplexity(model, ids, {given}).sel(token=tokens)")
        lines.append(f'print("{name}", float(sinkscope.ppl({name})[0]))')
    return lines


def save_view(controller: Controller, folder: str | os.PathLike[str], text: str | None = None) -> list[Path]:
    """Write the view as view.pdf, view.svg and view.png, its record as view.nc, and, with a model, its code as view.py.

    Returns:
        The files.

    Raises:
        SinkscopeError: nothing was read yet, or the folder cannot be written.
    """
    from sinkscope.figures import explored

    record, folder = view_record(controller), Path(folder).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise SinkscopeError(f"cannot write to {folder}: {problem.strerror or problem}.") from problem
    figure, files = explored(record), []
    for kind in ("pdf", "svg", "png"):
        files.append(folder / f"view.{kind}")
        with replacing(files[-1], "the figure") as partial:
            figure.savefig(partial, format=kind)
    files.append(save_record(record, folder / "view.nc"))
    if controller.model is not None:
        files.append(folder / "view.py")
        with replacing(files[-1], "the code") as partial:
            partial.write_text(code_of(controller, text), encoding="utf-8")
    return files


def _expression(slot: Any) -> str:
    return "sinkscope." + repr(slot).replace("-inf", 'float("-inf")')


def _provenance(controller: Controller, record: xr.Dataset) -> dict[str, Any]:
    if controller.model is None:
        return {}
    record = record.assign_coords(token_id=(("sequence", "token"), controller.model.ids.cpu().numpy()[None]))
    return {**model_attributes(controller.model.model), **token_attributes(record, controller.model.model)}
