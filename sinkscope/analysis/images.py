"""How much attention goes to the tokens of images, to which of them, and which of them are sinks."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.analysis.importance import importance
from sinkscope.analysis.mass import even_share
from sinkscope.analysis.reading import reads
from sinkscope.analysis.variables import measured_queries, variable, whole
from sinkscope.arguments import finite_number, whole_number
from sinkscope.errors import SinkscopeError

THRESHOLD, MASS, SHARE = 20.0, 0.2, 0.5  # Kang et al. 2025


@reads
def image_mass(record: xr.Dataset) -> xr.DataArray:
    """Mean attention mass on the tokens that stand for images: [layer, head], in 0..1.

    For each sequence the mean over all its queries, those before the image too; then the mean over the sequences with
    an image. From `received`. NaN for heads a layer lacks. attrs: `null`, the same figure for attention spread evenly
    over the keys that each query sees.
    Raises SinkscopeError if the record has no `received`, no token of an image, or keys of another text.

    >>> sinkscope.image_mass(record).dims
    ('layer', 'head')
    """
    record = _with_images(record)
    is_image, on_images = record["is_image"], _mass_on(record, record["is_image"])
    shares = even_share(record).transpose("sequence", "query").values
    null = [
        _even_mass(share, image)
        for share, image in zip(shares, is_image.transpose("sequence", "token").values, strict=True)
        if image.any()
    ]
    result = on_images.mean("sequence").rename("image_mass")
    result.attrs = {
        **record.attrs,
        "computed": "mean over queries, and over sequences with an image, of the attention mass on its tokens",
        "null": float(np.mean(null)),
    }
    return result


@reads
def image_grid(record: xr.Dataset, sequence: int = 0, image: int = 0) -> xr.DataArray:
    """Attention that each token of an image receives, at its place: [layer, head, image_row, image_column], in 0..1.

    The importance alpha of each token: the mean attention from the queries that see it. attrs: `null`, its mean over
    the image for attention spread evenly.

    >>> sinkscope.image_grid(record).dims
    ('layer', 'head', 'image_row', 'image_column')

    Args:
        record: with `received`, of a model that read images.
        sequence, image: which text, and which of its images or frames, from 0.

    Raises:
        SinkscopeError: as `image_mass`; also no such text or image, or one whose grid is not known.
    """
    record = _with_images(record)
    sequence, image = whole_number(sequence, "sequence", 0), whole_number(image, "image", 0)
    if sequence >= record.sizes["sequence"]:
        raise SinkscopeError(f"sequence={sequence} is not in a record of {record.sizes['sequence']} texts.")
    text = record.isel(sequence=[sequence])
    count = int(text["image"].max()) + 1 if "image" in text.coords else 0
    if image >= count:
        raise SinkscopeError(f"image={image} is not there: the text {sequence} has {count} images.")
    if "image_row" not in text.coords:
        raise SinkscopeError(
            "where its tokens are in the image is not known: their number is no grid of the patches that the model was "
            "given (images in tiles, or rows with breaks between), or the model was given no pixels."
        )
    cells = np.flatnonzero(text["image"].isel(sequence=0).values == image)
    at = {name: ("key", text[name].isel(sequence=0).values[cells]) for name in ("image_row", "image_column")}
    alpha = importance(text.assign(received=text["received"])).isel(sequence=0, key=cells)
    null = float(alpha["null"].mean())
    alpha = alpha.drop_vars(["null", "queries", *(set(alpha.coords) & {"key"})]).assign_coords(at)
    grid = alpha.set_index(key=["image_row", "image_column"]).unstack("key").rename("image_grid")
    grid.attrs = {**record.attrs, "computed": "importance alpha of each token of an image, at its place", "null": null}
    return grid.transpose("layer", "head", "image_row", "image_column")


@reads
def visual_sinks(
    record: xr.Dataset, threshold: float = THRESHOLD, mass: float = MASS, share: float = SHARE
) -> xr.Dataset:
    """Tokens of images that are sinks, and the heads that look at the image beside them (Kang et al. 2025).

    A token of an image is a visual sink of a layer where what the layer reads has phi at or above the threshold (see
    the probe `SinkDimensions`). A head is an image head where its attention on images is at least `mass`, and the
    sinks take at most `share` of that. Kang et al. judge each query on its own; here attention is the mean over all
    queries of a text.

    >>> list(sinkscope.visual_sinks(record))
    ['phi', 'is_sink', 'image_mass', 'sink_share', 'is_image_head']

    Args:
        record: with `normalised_max` and `received`.
        threshold: phi of a sink.
        mass, share: of an image head.

    Returns:
        phi            [sequence, layer, token] of what the layer reads; NaN where the token is of no image, and in the
                       first layer, since what that reads is not recorded
        is_sink        [sequence, layer, token] in 0 and 1
        image_mass     [sequence, layer, head]
        sink_share     [sequence, layer, head] of the attention on images that sinks take
        is_image_head  [sequence, layer, head] in 0 and 1; NaN where the sinks are not known

    Raises:
        SinkscopeError: as `image_mass`; also a record without `normalised_max`.
    """
    limits = {"threshold": threshold, "mass": mass, "share": share}
    for name, value in limits.items():
        finite_number(value, name, 0.0, inclusive=True)
    record = _with_images(record)
    phi = variable(record, "normalised_max").astype("float64")
    read = phi.assign_coords(layer=phi["layer"] + 1).reindex(layer=phi["layer"].values)  # what the layer before made
    is_image, read = record["is_image"], read.where(record["is_image"])
    is_sink = (read >= threshold).astype("float64").where(read.notnull())
    on_images, is_known = _mass_on(record, is_image), read.notnull().any("token")
    on_sinks = _mass_on(record, is_sink.fillna(0).astype(bool)).fillna(0.0).where(is_known)
    taken = on_sinks / on_images.where(on_images > 0)
    heads = ((on_images >= mass) & (taken <= share)).astype("float64").where(taken.notnull())
    found = {"phi": read, "is_sink": is_sink, "image_mass": on_images, "sink_share": taken, "is_image_head": heads}
    order = ("sequence", "layer", "head", "token")
    made = xr.Dataset({name: each.transpose(*order, missing_dims="ignore") for name, each in found.items()})
    made.attrs = {**record.attrs, "computed": "visual sinks and image heads (Kang et al. 2025)", **limits}
    return made


@reads
def visual_sinks_table(
    record: xr.Dataset, threshold: float = THRESHOLD, mass: float = MASS, share: float = SHARE
) -> pd.DataFrame:
    """What `visual_sinks` finds in each layer, means over the texts with an image.

    layer
    phi           the largest of any token of an image that the layer reads
    sinks         tokens of images that are sinks
    image_mass    attention on images, mean over heads
    sink_share    part of it that the sinks take, mean over heads
    image_heads   heads that look at the image beside its sinks

    >>> list(sinkscope.visual_sinks_table(record))
    ['layer', 'phi', 'sinks', 'image_mass', 'sink_share', 'image_heads']
    """
    found = visual_sinks(record, threshold, mass, share)
    columns = {
        "phi": found["phi"].max("token"),
        "sinks": found["is_sink"].sum("token", min_count=1),
        "image_mass": found["image_mass"].mean("head"),
        "sink_share": found["sink_share"].mean("head"),
        "image_heads": found["is_image_head"].sum("head", min_count=1),
    }
    table = pd.DataFrame({"layer": found["layer"].values})
    for name, each in columns.items():
        table[name] = each.mean("sequence").values
    table.attrs = dict(found.attrs)
    return table


def _with_images(record: xr.Dataset) -> xr.Dataset:
    """The record as a whole, of a text with images among its keys, and with what they receive."""
    record = whole(record)
    variable(record, "received")
    if "is_image" not in record.coords or not bool(record["is_image"].any()) or "key_length" in record.coords:
        raise SinkscopeError(
            "no key of this record is a token of an image: measure a model that reads images on the output of its "
            'processor, in its stream "text".'
        )
    return record.assign_coords(is_image=record["is_image"].astype(bool))


def _mass_on(record: xr.Dataset, chosen: xr.DataArray) -> xr.DataArray:
    """[sequence, layer, head] mean over queries of the mass on chosen tokens; NaN where none is."""
    received = record["received"].astype("float64").where(chosen.rename(token="key"))
    return received.sum("key", min_count=1) / measured_queries(record).sum("query")


def _even_mass(shares: np.ndarray, is_image: np.ndarray) -> float:
    """The mean over queries of the share of image tokens among the keys that each sees, which are the first of all."""
    shares = shares[np.isfinite(shares)]
    before = np.concatenate([[0], np.cumsum(is_image)])
    return float(np.mean(before[np.rint(1 / shares).astype(int)] * shares))
