"""A record with known contents for the tests of the report, and its numbers worked out one by one."""

from __future__ import annotations

import numpy as np
import xarray as xr

from tests.support.synthetic import synthetic_maps, synthetic_record

SHAPE = {"sequences": 3, "layers": 3, "heads": 2, "tokens": 32}
EVIL = [
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "$\\frac{",
    "\x00",
    "\n",
    "汉字",
    "a_b&c%",
]


def record() -> xr.Dataset:
    """A record whose tokens are as nasty as tokens get."""
    made = synthetic_record(**SHAPE)
    texts = made["token_text"].values.astype("U60")
    texts[:, 1 : 1 + len(EVIL)] = EVIL
    received = made["received"].values
    received[:, :, :, 1 : 1 + len(EVIL)] *= np.array([20, 2, 18, 2, 16, 2, 14], dtype="float32")
    made = made.assign(received=(made["received"].dims, received))
    made = made.assign_coords(token_text=(("sequence", "token"), texts))
    made.attrs |= {"model": "evil/<b>model</b>", "sinkscope": "0", "date": "2020-02-02", "text": "a & b"}
    return made


def norms_only() -> xr.Dataset:
    """The smallest record a report can be made of: quick to draw."""
    made = synthetic_record(**SHAPE)
    return made[["key_norm", "value_norm"]]


def maps() -> np.ndarray:
    return synthetic_maps(**SHAPE)
