"""What is said in a record beside its numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import xarray as xr

from sinkscope.hf.models import placeholder_ids
from sinkscope.models.facts import find_streams, model_attributes, token_attributes
from sinkscope.scope.declarations import placed

if TYPE_CHECKING:
    from sinkscope.scope.scope import Scope


def described(record: xr.Dataset, scope: Scope, other_keys: int) -> xr.Dataset:
    """A record with the units of its variables, and with what was measured how.

    Args:
        record: as collected.
        scope: which collected it.
        other_keys: keys that are no tokens, at most in one layer.
    """
    for probe in scope.probes:
        record = record.assign_coords(placed(probe, record.sizes))
        for name in probe.makes.keys() & set(record.data_vars):
            about = probe.makes[name]
            record[name].attrs |= {
                "units": about.units,
                "long_name": about.description,
                "probe": repr(probe),
                "dims": " ".join(map(str, record[name].dims)),
            }
    if marks := placeholder_ids(scope.model) if "token_id" in record.coords else []:
        record = record.assign_coords(is_image=record.token_id.isin(marks))
    record.attrs = {
        **({"stream": scope.stream} if len(find_streams(scope.model)) > 1 else {}),
        **model_attributes(scope.model),
        **token_attributes(record, scope.model),
        "attention": "attention interface" if scope.anatomy.interface else "watched softmax",
        "causal": int(scope.causal),
        "normaliser": "the model's own" if scope.normaliser is None else repr(scope.normaliser),
        "policy": repr(scope.policy),
        "probes": ", ".join(map(repr, scope.probes)),
    }
    if other_keys:  # they take attention as a learned sink does
        record.attrs["keys_that_are_no_tokens"] = other_keys
    return record
