"""The commands of reports: `report` of one model, by a plan or not, and `atlas` of many."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import sinkscope
from sinkscope.cli import options as given
from sinkscope.cli.options import printed, say
from sinkscope.errors import SinkscopeError

QUESTION = "What does this show?"  # behind pictures, where no text is given
SHOWN = (
    "model", "sink_mass", "sink_rate", "published_rate", "collapse", "collapse_low", "collapse_high", "sinks_needed",
    "largest_activation", "massive_tokens", "differs",
)  # fmt: skip


@given.loads_model
def report(
    model: given.Model = None,
    other: Annotated[
        str | None, typer.Argument(help="A saved report, if the first one is too: says what differs between them.")
    ] = None,
    text: given.Texts = None,
    out: Annotated[Path, typer.Option(help="Where to write: new, empty, or an earlier report.")] = Path("report"),
    segments: Annotated[
        int | None, typer.Option(min=1, help="So many parts from all over each text; 8 if left out.")
    ] = None,
    starts: Annotated[str | None, typer.Option(help="Where they start: spaced, random; spaced if left out.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of all that is drawn at random; 0 if left out.")] = None,
    sequences: Annotated[
        int | None, typer.Option(min=1, help="So many from the start of each text, in place of --segments.")
    ] = None,
    length: Annotated[int | None, typer.Option(min=1, help="Tokens in each sequence; 1024 if left out.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Tokens in all, in place of --sequences.")] = None,
    streaming: Annotated[bool | None, typer.Option(help="Also stream the text: perplexity, sinks, costs.")] = None,
    softmax: Annotated[
        bool | None, typer.Option(help="Also what sum-to-one forces: interventions and controls.")
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="A YAML file that says all this and more, hashed before anything is measured.")
    ] = None,
    write_plan: Annotated[
        Path | None, typer.Option(help="Write this call as a plan, with hashes of model and texts; measure nothing.")
    ] = None,
    image: Annotated[
        list[str] | None, typer.Option(help="Pictures that stand before the text, for a model that reads images.")
    ] = None,
    audio: Annotated[str | None, typer.Option(help="A .wav file, for a model that reads sound.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only where attention goes, the first part.")] = False,
    *,
    loading: given.Loading,
    quiet: given.Quiet = False,
) -> None:
    """Measure where a model's attention goes and write it up: a page, figures, tables and the record. In a new place
    the page can be read once the text itself is measured, and grows. Of two saved reports, say what differs."""
    if other is not None:
        unused: list[Any] = [
            text,
            segments,
            starts,
            seed,
            sequences,
            length,
            tokens,
            streaming,
            softmax,
            plan,
            write_plan,
            image,
            audio,
            quick or None,
        ]
        if loading or any(each not in (None, []) for each in unused):
            raise SinkscopeError(
                f"Nothing is measured between the two saved reports {model} and {other}: leave options out."
            )
        _say_differences(model or "", other)
        return
    from sinkscope.directories import check_directory

    target = check_directory(out) if write_plan is None else out
    from sinkscope.reporting import gather  # after the check, which needs no torch
    from sinkscope.reporting.attention import ATTENTION
    from sinkscope.reporting.plan import LENGTH

    if tokens is not None:
        length = min(LENGTH if length is None else length, tokens)
        sequences = max(1, tokens // length)
    asked: dict[str, Any] = {"segments": segments, "starts": starts, "seed": seed, "sequences": sequences}
    asked |= {"length": length, "streaming": streaming, "softmax": softmax}
    more = {"--streaming": streaming, "--softmax": softmax, "--plan": plan, "--write-plan": write_plan}
    if quick and (other_option := next((name for name, value in more.items() if value), None)):
        raise SinkscopeError(f"--quick stops after the first part, and {other_option} is of more: leave one out.")
    asked = {name: value for name, value in asked.items() if value is not None}
    if write_plan is not None or plan is not None:
        if image or audio is not None:
            raise SinkscopeError("A plan is of texts: leave --image and --audio out.")
        asked |= {} if plan is None else {"plan": plan}
    if write_plan is not None:
        from sinkscope.reporting.planned import plan_of_call

        written = plan_of_call(model, text or None, loading, **asked)
        written.save(write_plan)
        say(quiet, f"Written to {write_plan}; nothing was measured. SHA-256 of what it says: {written.sha256}")
        return
    progress, tokenizer = False if quiet else None, None
    if quick:
        asked["sections"] = (ATTENTION,)
    if not target.exists() or not any(target.iterdir()):  # an earlier report stays until the new one is whole
        asked["each"] = lambda made: made.save(target, prints=False, progress=False)
    if image or audio is not None:
        if text and len(text) > 1:
            raise SinkscopeError(f"Beside pictures or sound there is one text, not {len(text)}: leave the others out.")
        model, tokenizer, inputs = _processed(model, image or [], audio, text[0] if text else None, loading)
        made = gather.report(model, tokenizer, inputs, **asked, progress=progress)
    else:
        made = gather.report(model, texts=text or None, **asked, progress=progress, **loading)
    made.save(target, progress=progress)
    say(quiet, made.headline, *made.notes, f"Open {target / 'report.html'}")


def _processed(
    model: str | None, images: list[str], audio: str | None, text: str | None, loading: dict[str, Any]
) -> tuple[Any, Any, Any]:
    """A model, its processor, and what this makes of pictures with the words behind them, or of a recording."""
    from sinkscope.hf.processors import inputs_with_images, inputs_with_sound, load_processor

    if audio is not None and (images or text is not None):
        raise SinkscopeError("--audio is read alone; leave --image and --text out.")
    loaded, _ = sinkscope.load(model, **loading)
    chosen = {name: loading[name] for name in ("revision", "trust_remote_code") if name in loading}
    processor = load_processor(loaded, **chosen)
    if audio is not None:
        return loaded, processor, inputs_with_sound(processor, audio)
    words = QUESTION if text is None else sinkscope.read_text(text)
    return loaded, processor, inputs_with_images(processor, images, words)


def _say_differences(one: str, other: str) -> None:
    table = sinkscope.compare_reports(one, other)
    say(False, f"{one} and {other}; brackets: 95%, paired by text.", printed(table))


@given.loads_model
def atlas(
    models: Annotated[list[str], typer.Argument(help="Folders of saved reports, or what `report` takes as a model.")],
    text: given.Text = None,
    out: Annotated[Path, typer.Option(help="Where to write: new, empty, or an earlier atlas.")] = Path("atlas"),
    reports: Annotated[
        Path | None, typer.Option(help="A folder where reports that are made are saved, and found again.")
    ] = None,
    segments: Annotated[int, typer.Option(min=1, help="So many parts from all over the text.")] = 8,
    length: Annotated[int, typer.Option(min=1, help="Tokens in each sequence.")] = 1024,
    streaming: Annotated[bool, typer.Option(help="Also stream the text: collapse and sinks needed.")] = True,
    *,
    loading: given.Loading,
    quiet: given.Quiet = False,
) -> None:
    """The headline numbers of many models, in one table and on one page; saved reports are not made again."""
    from sinkscope.directories import check_directory

    target, progress = check_directory(out), False if quiet else None
    made = sinkscope.atlas(
        models, text, segments=segments, length=length, streaming=streaming, folder=reports, progress=progress,
        **loading,
    )  # fmt: skip
    made.save(target, progress=progress)
    table = made.tables["atlas"]
    shown = table[[name for name in SHOWN if name in table]]
    say(quiet, made.headline, printed(shown), made.finding("atlas"), f"Open {target / 'report.html'}")
