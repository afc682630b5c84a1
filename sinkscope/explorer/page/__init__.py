"""The explorer as one HTML file that needs no kernel and no network: the same canvases, over numbers read beforehand.

packing     what is shown of each setting, as few bytes
held.js     unpacks it again
page.js     answers the canvases, as the controller does beside a kernel; page.html, page.css
copies.js   what a canvas shows as a table
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from sinkscope.arguments import several
from sinkscope.attention.placement import is_same
from sinkscope.errors import SinkscopeError, shown
from sinkscope.explorer.canvases import STYLE, Atlas, Finder, HeadMap, Lines, Losses, TokenText, module
from sinkscope.explorer.configuration import Configuration
from sinkscope.explorer.controller import CLOSED, NEEDS_MODEL, Controller
from sinkscope.explorer.derived import OVER_NAMES, ManyHeads, why_not
from sinkscope.explorer.display import SMOOTH, WIDEST_ROW, token_text
from sinkscope.explorer.page.packing import (
    COARSEST,
    TOKENS_A_CELL,
    Setting,
    chunks,
    in_base64,
    in_text,
    numbers,
    sizes,
)  # fmt: skip
from sinkscope.explorer.pixels import FAINTEST, RANKINGS, MapOptions
from sinkscope.explorer.text_model import TextModel
from sinkscope.figures.style import model_name, source_line, visible
from sinkscope.files import write_sealed
from sinkscope.models.facts import model_attributes
from sinkscope.policies import Policy
from sinkscope.progress import progress_bar
from sinkscope.reporting.markup import content_policy, script_json, template

MEGABYTES = 12.0  # a page has at most
SINKS = (0, 4)  # beside each window of a page, if nothing else is asked for
MEGABYTE = 1_000_000


def page_settings(
    length: int, windows: Sequence[int] | None = None, sinks: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """What a page of so many tokens shows beside the model as it is: each window alone and beside each number of sinks.

    When None, windows of 1/2, 1/4, 1/8 and 1/16 of the text, with `SINKS`, and one of them with a single sink.
    """
    sizes = windows or [size for size in (length // 2, length // 4, length // 8, length // 16) if size > max(SINKS)]
    asked = [(size, count) for size in sizes for count in (SINKS if sinks is None else sinks)]
    if windows is None and sinks is None and len(sizes) > 1:
        asked.append((sizes[1], 1))
    return [
        {"policy": "sinks", "sinks": count, "window": size} if count else {"policy": "window", "window": size}
        for size, count in sorted(asked, key=lambda each: (-each[0], each[1]))
    ]


def page_of(
    controller: Controller,
    path: str | os.PathLike[str],
    settings: Sequence[Mapping[str, Any] | Configuration | Policy] | None,
    megabytes: float,
) -> Path:
    """The page of an open explorer, which goes on meanwhile; it opens on the head and the query chosen there.

    Args:
        controller: what the explorer shows.
        path: the file, which ends in .html.
        settings: what is shown beside the model as it is, each read afresh: policies, or fields of a configuration;
            windows with and without sinks, and what is shown now, when None.
        megabytes: what the file may have, in 10^6 bytes. Maps are pooled until it has no more; the page says where.

    Raises:
        SinkscopeError: no model, and what `save_page` refuses.
    """
    model, tokens = controller.model, controller.tokens
    if model is None:
        raise SinkscopeError(f"no page was written: {CLOSED if controller.is_closed else NEEDS_MODEL}.")
    reading = controller.now.reading
    if settings is None and reading is not None and not reading.configuration.is_recomputed:
        settings = [*page_settings(len(tokens)), reading.configuration]
    own = TextModel(model.original, model.ids, model.tokenizer, model.beside)
    return save_page(own, tokens, path, settings, megabytes, controller)


def save_page(
    model: TextModel,
    tokens: list[str],
    path: str | os.PathLike[str],
    settings: Sequence[Mapping[str, Any] | Configuration | Policy] | None = None,
    megabytes: float = MEGABYTES,
    looking: Controller | None = None,
) -> Path:
    """Read the text under every setting and write the page.

    Args:
        model: a reader of its own, which nothing else runs meanwhile.
        tokens: [token] their texts.
        path: the file, which ends in .html.
        settings: beside the model as it is: fields of a `Configuration`, or policies; `page_settings` when None.
        megabytes: what the file may have, in 10^6 bytes. Maps are pooled until it has no more.
        looking: what the page opens on; the head with the most sink mass and the last query when None.

    Raises:
        SinkscopeError: a setting that this model cannot be read under, a page that would be too large however coarse
            its maps, a file that cannot be written or that sinkscope did not write.
    """
    file = Path(os.path.expanduser(path))
    if file.suffix != ".html":
        raise SinkscopeError(
            f"the page is one HTML file, and {shown(str(path))} is none; give a name that ends in .html."
        )
    if not 0 < megabytes < math.inf:
        raise SinkscopeError(f"megabytes={megabytes!r} leaves no room for a page; give 12, for example.")
    asked = page_settings(len(tokens)) if settings is None else several(settings, "settings")
    configurations = [_configuration(each, len(tokens)) for each in asked]
    with _reading(model, tokens) as controller:
        found = list(_read(controller, configurations))
        if looking is not None and looking.now.reading is not None:
            controller.choose(looking.unit)
            controller.choose_query(looking.query)
        page = _page(controller, found, int(megabytes * MEGABYTE))
    write_sealed(file, page.encode("utf-8", "backslashreplace"), "the page")
    return file


def _configuration(asked: Any, length: int) -> Configuration:
    baseline = Configuration.of_text(length)
    if isinstance(asked, Policy):
        asked = replace(baseline, policy=asked)
    elif isinstance(asked, Mapping):
        unknown = asked.keys() - vars(baseline).keys()
        if unknown:
            known = ", ".join(vars(baseline))
            raise SinkscopeError(f"{min(map(str, unknown))!r} is no field of a setting; give some of {known}.")
        asked = replace(baseline, **asked)
    if not isinstance(asked, Configuration):
        raise SinkscopeError(
            f"{asked!r} is no setting of a page; give a policy, such as sinkscope.Window(64), or fields, such as "
            '{"policy": "sinks", "sinks": 4, "window": 64}.'
        )
    if asked.is_recomputed:
        raise SinkscopeError(
            f"`{asked.name}` has maps of its own for every query, which no page holds; leave it out of the settings."
        )
    asked.check(length)
    return asked


@contextmanager
def _reading(model: TextModel, tokens: list[str]) -> Iterator[Controller]:
    controller = Controller(model, tokens)
    try:
        yield controller
    finally:
        controller.close()


def _read(controller: Controller, configurations: list[Configuration]) -> Iterator[Setting]:
    """Each setting once, first the model as it is."""
    asked: list[Configuration] = [controller.baseline]
    for each in configurations:
        if not any(_run_alike(each, other) for other in asked):
            asked.append(each)
    with progress_bar(len(asked), "setting") as bar:
        for each in asked:
            if each is controller.baseline:
                controller.begin()
            else:
                controller.change(**vars(each))
            controller.wait()
            if controller.problem:
                raise SinkscopeError(f"no page was written: under `{each.name}`: {controller.problem}")
            bar.update()
            yield Setting.of(controller)


def _run_alike(one: Configuration, other: Configuration) -> bool:
    return is_same(one.policy_slot, other.policy_slot) and is_same(one.normaliser_slot, other.normaliser_slot)


def _page(controller: Controller, settings: list[Setting], most: int) -> str:
    """The page, its maps as fine as there is room for."""
    about = _about(controller, settings)
    beside = numbers(settings)
    length, units = settings[0].shape[0], range(len(controller.units))
    room = most - len(_rendered(controller, about, [], [], beside).encode("utf-8")) - 2048  # for the seal, and names
    is_pooled = length < len(controller.tokens)  # already: cells of whole cells are wanted then
    sides = [-(-length // step) for step in TOKENS_A_CELL if not (is_pooled and length % step)]
    for side in [length, *(each for each in sides[1:] if each >= COARSEST)]:
        maps = chunks(settings, units, side)
        taken = sum(in_base64(len(each)) for each in maps)
        if taken <= room:
            break
    if taken > room:
        raise SinkscopeError(
            f"no page was written: with maps of {side} × {side} cells, the coarsest, it has "
            f"{(most - room + taken) / MEGABYTE:.3g} MB, and {most / MEGABYTE:g} are allowed; give fewer than "
            f"{len(settings) - 1} settings, a text shorter than {len(controller.tokens):,} tokens, or more megabytes."
        )
    fine = _fine(settings, _ranked(controller, settings), length, room - taken) if side < length else []
    about |= {"side": side, "fine": fine, "fine_side": length}
    return _rendered(controller, about, maps, chunks(settings, fine, length) if fine else [], beside)


def _ranked(controller: Controller, settings: list[Setting]) -> list[int]:
    """Heads by their use at the full resolution: that which the page opens on, then by sink mass."""
    by_mass = settings[0].orders.get("mass", list(range(len(controller.units))))
    return [controller.unit, *(unit for unit in by_mass if unit != controller.unit)]


def _fine(settings: list[Setting], units: list[int], side: int, room: int) -> list[int]:
    """As many heads, in this order, as there is room for at the full resolution."""
    found, taken = [], 0
    for unit in units:
        taken += in_base64(sizes(settings, unit, side)) + 64
        if taken > room:
            break
        found.append(unit)
    return found


def _about(controller: Controller, settings: list[Setting]) -> dict[str, Any]:
    units = controller.units
    heads = len({unit.head for unit in units})
    vocabulary = sorted({int(token) for each in settings for token in each.guesses.ids.ravel() if token >= 0})
    known = [name for name in RANKINGS if all(name in each.orders for each in settings)]
    return {
        "tokens": controller.tokens,
        "labels": [str(unit) for unit in units],
        "places": [[unit.layer, unit.head] for unit in units],
        "columns": heads if heads <= WIDEST_ROW else 2 * WIDEST_ROW,
        "sinks": settings[0].strips.shape[2],
        "rows": settings[0].shape[0],
        "causal": all(each.is_causal for each in settings),
        "low": FAINTEST,
        "smooth": SMOOTH,
        "ranks": settings[0].guesses.ids.shape[1],
        "vocabulary": {token: token_text(controller, token) for token in vocabulary},
        "rankings": {name: RANKINGS[name] for name in known},
        "over": _over(controller),
        "opening": {"unit": controller.unit, "query": controller.query},
        "settings": [
            {
                "name": each.name,
                "said": _said(each, is_dense=each is settings[0]),
                "continuation": each.continuation,
                "scores": each.scores,
                "orders": each.orders,
                "highs": each.highs if any(each.highs) else [],
            }
            for each in settings
        ],
    }


def _over(controller: Controller) -> dict[str, Any]:
    """The ways to show several heads as one map: their label, the sets of heads, and by unit the number of its set."""
    maps = controller.now_maps
    found: dict[str, Any] = {}
    assert maps is not None
    every = range(len(maps.units))
    for label, over in OVER_NAMES.items():
        if over == "head" or any(why_not(maps, unit, MapOptions(over=over)) for unit in every):
            continue
        many = ManyHeads(maps, over)
        sets: dict[tuple[int, ...], dict[str, Any]] = {}
        for unit in every:
            told = {"name": many.name(unit), "said": many.said(unit), "mean": many.kind == "mean"}
            sets.setdefault(tuple(many.members(unit)), told)
        numbers = {members: number for number, members in enumerate(sets)}
        found[over] = {
            "label": label,
            "sets": [{"members": list(members), **told} for members, told in sets.items()],
            "of": [numbers[tuple(many.members(unit))] for unit in every],
        }
    return found


def _said(setting: Setting, is_dense: bool) -> str:
    """What the setting does to perplexity, as the explorer's headline says it."""
    loss, note = setting.loss, f" {setting.note}." if setting.note else ""
    if loss is None:
        return note.strip()
    if is_dense:
        return f"perplexity {loss.dense:.2f} over {loss.tokens:,} tokens.{note}"
    return (
        f"perplexity {loss.changed:.2f} against {loss.dense:.2f} dense (× {loss.changed / loss.dense:.2f}) on the "
        f"{loss.tokens:,} tokens from position {loss.first:,} on, where the two can differ.{note}"
    )


def _rendered(
    controller: Controller, about: dict[str, Any], maps: list[bytes], fine: list[bytes], beside: list[bytes]
) -> str:
    assert controller.model is not None
    source = model_attributes(controller.model.original)
    script = page_script()
    return template(_resource("page.html")).render(
        policy=content_policy(script),
        title=visible(model_name(source), spaces=False),
        source=source_line(source | {"tokens": len(controller.tokens)}),
        style=f"{STYLE}\n{_resource('page.css')}",
        script=script,
        about=script_json(about),
        data={f"{kind}-{at}": in_text(each) for kind, all_of in (("maps", maps), ("fine", fine), ("numbers", beside))
              for at, each in enumerate(all_of)},
    )  # fmt: skip


def page_script() -> str:
    """One module: what the canvases share, each in a block with names of its own, and what answers them."""
    canvases = {"atlas": Atlas, "map": HeadMap, "text": TokenText, "losses": Losses, "finder": Finder, "lines": Lines}
    shared = module()
    blocks = [
        f"{{{str(each._esm).removeprefix(shared).replace('export default {', f'CANVASES.{name} = {{', 1)}\n}}"
        for name, each in canvases.items()
    ]
    pages = [_resource(name) for name in ("held.js", "copies.js", "page.js")]
    return "\n".join([shared, "const CANVASES = {};", *blocks, *pages])


def _resource(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")
