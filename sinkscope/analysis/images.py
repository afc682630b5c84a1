"""How much attention goes to the tokens of images."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sinkscope.analysis.mass import even_share
from sinkscope.analysis.reading import reads
from sinkscope.analysis.variables import measured_queries, variable, whole
from sinkscope.errors import SinkscopeError


@reads
def image_mass(record: xr.Dataset) -> xr.DataArray:
    """Mean attention mass on the tokens that stand for images: [layer, head], in 0..1.

    For each sequence the mean over all its queries, those before the image too; then the mean over the sequences with
    an image. From `received`. NaN for heads a layer lacks. attrs: `null`, the same figure for attention spread evenly
    over the keys that each query sees.
    Raises SinkscopeError if the record has no `received`, no token of an image, or keys of another text.
    """
    record = whole(record)
    received = variable(record, "received").astype("float64")
    if "is_image" not in record.coords or not bool(record["is_image"].any()) or "key_length" in record.coords:
        raise SinkscopeError(
            "no key of this record is a token of an image: measure a model that reads images on the output of its "
            'processor, in its stream "text".'
        )
    is_image = record["is_image"].astype(bool)
    measured = measured_queries(record)
    on_images = received.where(is_image.rename(token="key")).sum("key", min_count=1) / measured.sum("query")
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


def _even_mass(shares: np.ndarray, is_image: np.ndarray) -> float:
    """The mean over queries of the share of image tokens among the keys that each sees, which are the first of all."""
    shares = shares[np.isfinite(shares)]
    before = np.concatenate([[0], np.cumsum(is_image)])
    return float(np.mean(before[np.rint(1 / shares).astype(int)] * shares))
