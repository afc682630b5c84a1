"""The section of a report on models of several parts: images in a text, and the attention beside the main one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import xarray as xr

from sinkscope import figures as draw
from sinkscope.analysis.images import image_mass, visual_sinks_table
from sinkscope.reporting.attention import masses
from sinkscope.reporting.content import Item, Measure, Numbers, Section, Table

if TYPE_CHECKING:
    from sinkscope.reporting.passes import Passes

STREAMS = {"cross": "Cross-attention", "encoder": "The encoder", "vision": "The images", "audio": "The sound"}
"""What the streams beside the main one are called."""


def run(passes: Passes) -> Mapping[str, xr.Dataset | Measure]:
    """A record of each part of a model beside the one that predicts tokens, where it is given all it reads."""
    from sinkscope.probes import FREE, Entropy, Received

    shown = [name for name in passes.streams if name in STREAMS]
    passes.notes += [
        f"The attention of `{name}` is not shown; sinkscope.measure(model, inputs, stream={name!r}) has it."
        for name in passes.streams
        if name not in STREAMS
    ]
    return {name: partial(passes.stream, name, [*FREE, Entropy(), Received()]) for name in shown}


def on_images(record: xr.Dataset) -> Numbers:
    """Attention on the tokens of images, mean over queries, layers and heads."""
    mass = image_mass(record)
    note = "mean over the queries of the texts with an image; null: even attention to the keys that each sees"
    return [
        {"quantity": "mass on the tokens of images", "unit": "probability", "value": float(mass.mean()),
         "null": mass.attrs["null"], "note": note}
    ]  # fmt: skip


def first_keys(record: xr.Dataset, name: str) -> Numbers:
    """Mass on the first key of another stream, called after it."""
    return [{**row, "quantity": f"{name}: {row['quantity']}"} for row in masses(record)[:1]]


def items_of(name: str, title: str) -> list[Item]:
    """What is shown of one stream."""
    keys = "what the encoder, or the tower of patches, made" if name == "cross" else "its own"
    return [
        Item(
            f"{name}_mass",
            f"{title}: mass on the first key",
            record=name,
            variables="sink_mass",
            figure=draw.sink_mass_heatmap,
            numbers=partial(first_keys, name=name),
            meaning=f"The attention that queries give to the first key of {keys}, for every layer and head. The null "
            "is attention spread evenly over all keys.",
        ),
        Item(
            f"{name}_received",
            f"{title}: attention received",
            record=name,
            variables="received",
            figure=draw.received_by_position,
            meaning="Importance α of each key of one sequence: the mean attention it receives from all queries. The "
            "null is attention spread evenly.",
        ),
    ]


ITEMS = (
    Item(
        "image_grid",
        "Attention to the image, over the image",
        variables=("received", "image"),
        figure=draw.image_grid,
        meaning="Importance α of each token of the first image: the mean attention from the queries that see it, over "
        "the part of the image that the token stands for. Beside the mean over all heads the three that look most at "
        "the image. A few bright cells on an even background are visual sinks.",
    ),
    Item(
        "image_mass",
        "Mass on the tokens of images",
        variables=("received", "image"),
        numbers=on_images,
        table=Table(
            lambda record: image_mass(record).to_series().rename("mass").dropna().reset_index(),
            title="Mass on the tokens of images",
        ),
    ),
    Item(
        "visual_sinks",
        "Visual sinks",
        variables=("received", "image", "normalised_max"),
        table=Table(
            visual_sinks_table,
            meaning="Of each layer: the largest φ of a token of an image (the largest magnitude of its hidden state "
            "over the root mean square, in any dimension), how many are sinks (φ ≥ 20), the mass on images, the part "
            "of it that the sinks take, and the heads that give images 0.2 or more with at most half of it to sinks "
            "(Kang et al. 2025, who judge each query; here attention is the mean over queries).",
        ),
    ),
    *(item for name, title in STREAMS.items() for item in items_of(name, title)),
)
PARTS = Section(
    "Images, and other parts of the model",
    ITEMS,
    run,
    records=dict(STREAMS),
    subject="What the model reads beside its text",
)
