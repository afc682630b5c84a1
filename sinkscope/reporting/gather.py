"""`report`: measure a model on a text, in the ways its sections need, each pass once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import xarray as xr

from sinkscope.analysis.variables import is_causal
from sinkscope.arguments import checks_types, several
from sinkscope.errors import SinkscopeError, shown
from sinkscope.hf.loading import load_beside
from sinkscope.models.as_found import AsFound
from sinkscope.models.facts import find_streams
from sinkscope.probes import Probe
from sinkscope.progress import Stages
from sinkscope.reporting.content import MAIN, Item, Section, arranged
from sinkscope.reporting.document import SECTIONS, Report
from sinkscope.reporting.inputs import (
    given_inputs,
    plain_text,
    text_for_encoder,
    text_rows,
    with_decoder_inputs,
)
from sinkscope.reporting.made import checked, reason_of
from sinkscope.reporting.passes import Passes, different
from sinkscope.reporting.planned import Planned, how_read
from sinkscope.reporting.softmax import SOFTMAX
from sinkscope.reporting.streaming import STREAMING
from sinkscope.reporting.streams import PARTS
from sinkscope.texts import read_stream, text_name

WITHIN = 1_000_000  # first tokens of each text, from all over which segments are taken


@checks_types
def report(
    model: Any = None,
    tokenizer: Any = None,
    text: str | os.PathLike[str] | Mapping[str, Any] | torch.Tensor | None = None,
    *,
    texts: Iterable[str | os.PathLike[str]] | None = None,
    sequences: int | None = None,
    segments: int | None = None,
    starts: str | None = None,
    seed: int | None = None,
    length: int | None = None,
    streaming: bool | None = None,
    softmax: bool | None = None,
    plan: Any = None,
    items: Iterable[Item] | None = None,
    sections: Iterable[Section] = SECTIONS,
    each: Callable[[Report], object] | None = None,
    progress: bool | None = None,
    **load_options: Any,
) -> Report:
    """Measure where the attention of a model goes, and return the Report of it.

    If the tokenizer itself puts a BOS token in front of a text, every sequence gets one; otherwise none does.
    Encoders (BERT) give a reduced report: there is no sink rate over lengths and no distance profile, both of which are
    defined by causal attention. A model of several parts is shown whole: images with the part of it that reads them,
    an encoder-decoder with its cross-attention and its encoder. Where its decoder is given nothing to read, it reads
    what the model itself writes.

    >>> report = sinkscope.report(model, tokenizer, "book.txt", length=32, sequences=2, streaming=False, softmax=False)
    >>> report.figures["sink_mass_heatmap"].savefig("heatmap.pdf")

    Args:
        model: a loaded model, a name on the Hub, a directory, a .gguf file; None for the demo model.
        tokenizer: or a processor; found beside the model where it is not given.
        text: a UTF-8 file, "hf:name", or None for the demo text. Or all that a model gets in one call, as its processor
            makes it: `report(model, processor, processor(images=..., text=..., return_tensors="pt"))`. What needs a
            text that can be cut is left out then, and the report says so.
        texts: several in the place of one, "demo" being the demo text. Intervals are over the sequences of all of them,
            and the table `texts` sets the headlines of each beside each other.
        segments: how many parts of each text, from all over its first million tokens; 8 when None. Those of losses and
            interventions are as many as a text has room for, 8 at most, from places of the same kind.
        starts, seed: of segments, "spaced" or "random"; the seed is of all else that is drawn at random too.
        sequences: so many consecutive sequences from the start of each text, in the place of segments.
        length: tokens in each sequence, 1,024 when None. A text or a model's position limit too small gives fewer or
            shorter ones, and the report says so (`Report.notes`). What a processor made is measured as it is.
        streaming: whether to measure also what it costs to forget: perplexity under four policies, the number of sinks,
            time and memory per token. A text too short or a model that cannot be streamed leaves the section out, and
            the report says why. True when None.
        softmax: whether to measure also what sum-to-one forces: eviction in closed form, the collapse decomposed,
            doses, interventions beside their controls, sink mass against predictability; left out in the same way.
        plan: a `Plan`, a mapping or a YAML file that says all of this and thresholds and policies beside it. It is
            checked and hashed before anything is measured; hash and time stand in the report and in its records.
            Arguments beside it may not say otherwise.
        items: what to show, `[*sinkscope.ITEMS, ...]` for more than usual; all items of the sections when None. Their
            probes measure in the same pass as the probes of the record they read.
        sections: the parts of the page; one without items is not measured, but for the main record.
        each: called with the report so far, first once there is the main record, then after each further section but
            the last, which `lambda made: made.save("report")` makes a page that grows.
        progress: False for no progress bars, and no line for each section that is finished.
        load_options: passed to `load`, for example dtype or device.

    Raises:
        SinkscopeError: a model or text that cannot be read, a model without a tokenizer, a text of fewer than 8 tokens;
            a plan that does not fit the call; two items of one name, an item that no section can serve, or no section
                that makes the main record.
    """
    chosen = None if items is None else tuple(several(items, "items"))
    parts = arranged(sections, chosen)
    if not any(MAIN in part.records and part.run is not None for part in parts):
        raise SinkscopeError(f"no section makes the main record `{MAIN}`; give one that does, sinkscope.SECTIONS[0].")
    if each is not None and not callable(each):
        raise SinkscopeError(f"each={shown(each)} is no function; give one that takes a Report, or None.")
    probes = _probes(parts)
    if isinstance(tokenizer, Mapping) and text is None:  # as `measure` takes it
        tokenizer, text = None, tokenizer
    inputs = given_inputs(text)
    asked: dict[str, Any] = {"sequences": sequences, "segments": segments, "starts": starts, "seed": seed}
    asked |= {"length": length, "streaming": streaming, "softmax": softmax}
    asked |= {"model": model, "texts": text if texts is None and inputs is None else texts}
    if text is not None and texts is not None:
        raise SinkscopeError("Both text and texts were given: give one of them.")
    planned = Planned(plan, asked, load_options, inputs is None)  # a wrong text is told before a model is loaded
    settings = planned.plan
    model, load_options = planned.load_arguments(model, load_options)
    loaded, tokenizer = load_beside(model, tokenizer, **load_options)
    wishes = {STREAMING.title: settings.streaming, SOFTMAX.title: settings.softmax}
    wanted = [part for part in parts if MAIN in part.records or (part.items and wishes.get(part.title, True))]
    run = [part for part in wanted if part.run is not None]
    name = "what a processor made" if inputs is not None else text_name(settings.sources)
    if inputs is None:
        if tokenizer is None:
            raise SinkscopeError("This model has no tokenizer beside it, and a report reads a text: pass tokenizer=...")
        few = settings.sequences is not None and len(run) == 1
        limit = max(settings.count * settings.length, 1 if few else WITHIN)
        streams = [read_stream(tokenizer, source, limit) for source in settings.sources]
        tokens, front = [stream for stream, _ in streams], streams[0][1]
        planned.check_read(loaded, tokens)
        rows, notes = text_rows(loaded, tokens, settings, front)
        if "encoder" in find_streams(loaded):
            inputs = text_for_encoder(loaded, rows)
    elif (plain := plain_text(loaded, inputs)) is not None:
        inputs, (only, front) = None, plain
        tokens, settings = [only], replace(settings, sequences=1, segments=None, length=max(1, len(only) + len(front)))
        rows, notes = text_rows(loaded, tokens, settings, front)
    about = {} if inputs is not None else {"read": how_read(settings, len(rows) // len(tokens))}
    if inputs is not None:
        inputs, notes = with_decoder_inputs(loaded, inputs)
        tokens, front, rows = [torch.empty(0, dtype=torch.long)], (), torch.empty(0, 0, dtype=torch.long)
    passes = Passes(
        loaded, tokenizer, tokens[0], rows, front, probes, progress, inputs, tokens[1:], settings,
        settings.names if len(tokens) > 1 else [],
    )  # fmt: skip
    run = [part for part in run if part.title != PARTS.title or inputs is not None]
    stages, records = Stages([part.title for part in run], progress), dict[str, xr.Dataset]()

    def gathered(left: Sequence[str] = ()) -> Report:
        is_other = chosen is not None or tuple(sections) != SECTIONS
        told = [f"Still to come: {'; '.join(left)}."] if left else planned.notes(records, is_other)
        told += [*notes, *passes.notes]
        made = {key: record.assign_attrs(planned.attributes) for key, record in records.items()}
        made[MAIN].attrs |= about | ({"notes": "\n".join(told)} if told else {})
        return Report(made, items=chosen, sections=sections)

    def take(made: Mapping[str, xr.Dataset], left: Sequence[str]) -> None:
        begins = MAIN not in records
        records.update({key: record.assign_attrs(text=name, **settings.thresholds) for key, record in made.items()})
        if each is not None and left and MAIN in records and (begins or MAIN not in made):
            each(gathered(left))

    def begin(left: Sequence[str], made: Mapping[str, xr.Dataset], more: Sequence[str]) -> None:
        take(made, [*more, *left])

    for part in run:
        with stages.next() as left:
            made, why = _measured(part, passes, records, partial(begin, left))
        notes += why
        take(made, left)
    return gathered()


def _measured(
    part: Section,
    passes: Passes,
    records: Mapping[str, xr.Dataset],
    begun: Callable[[Mapping[str, xr.Dataset], Sequence[str]], None] = lambda made, more: None,
) -> tuple[dict[str, xr.Dataset], list[str]]:
    """The records of a section, and notes on those left out, with the reason.

    `begun` is called once there is the main record, with it and what to call those of the section behind it.
    """
    assert part.run is not None
    if part.causal_only and not is_causal(records[MAIN]) and passes.inputs is None:
        return {}, [f"{part.subject} was not measured: an encoder reads a text as a whole, with no cache."]
    found, told = AsFound(passes.model, part.run), f"the section `{part.title}`"
    made: dict[str, xr.Dataset] = {}
    refused: dict[str, list[str]] = {}
    try:
        measured: Any = found.after(partial(part.run, passes), part.run, told)
        if not isinstance(measured, Mapping) or isinstance(measured, xr.Dataset):
            raise SinkscopeError(f"its run gave a {type(measured).__name__}; give a dict from names to records.")
        for name, step in measured.items():
            if name not in part.records:
                raise SinkscopeError(f"{told} made the record `{name}`, which it does not list.")
            try:
                given = found.after(step, part.run, told) if callable(step) else step
                made[name] = checked(given, xr.Dataset, f"the record `{name}`", "an xarray.Dataset")
            except Exception as problem:
                if MAIN in part.records and not isinstance(problem, SinkscopeError):
                    raise
                refused.setdefault(reason_of(problem), []).append(part.records[name])
            else:
                if name == MAIN:
                    behind = list(measured)[list(measured).index(MAIN) + 1 :]
                    begun(made, [part.records[other] for other in behind if other in part.records])
    except Exception as problem:
        if MAIN in part.records:
            raise
        return {}, [f"{part.subject} was not measured: {reason_of(problem)}"]
    found.check_same(told)
    notes, passes.notes = passes.notes, []
    return made, [*(_note(whats, reason) for reason, whats in refused.items()), *notes]


def _note(whats: list[str], reason: str) -> str:
    """One sentence for all that was refused for one reason."""
    *others, last = [whats[0], *(what[0].lower() + what[1:] for what in whats[1:])]
    said = f"{', '.join(others)} and {last} were" if others else f"{last} was"
    return f"{said} not measured: {reason}"


def _probes(parts: Sequence[Section]) -> dict[str, list[Probe]]:
    """By record, the probes of the items that read it. Raises SinkscopeError where none of their records takes one."""
    run = [part for part in parts if part.run is not None]
    probed = {name for part in run for name in (part.records if part.probed is None else part.probed)}
    by_record: dict[str, list[Probe]] = {}
    for item in (item for part in parts for item in part.items if item.probes):
        names = [name for name in item.record if name in probed]
        if not names:
            raise SinkscopeError(
                f"the item `{item.name}` has probes, and the record `{item.record[0]}` is not measured by probes; give "
                f"one of {', '.join(sorted(probed))}."
            )
        for name in names:
            by_record[name] = different([*by_record.get(name, []), *item.probes])
    return by_record
