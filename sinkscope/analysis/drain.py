"""Value drain: sinks take much attention and pass on little, because their values are short (Guo et al. 2024,
"Active-dormant attention heads")."""

from __future__ import annotations

import xarray as xr

from sinkscope.analysis.variables import sequence_lengths, text_length, variable, whole
from sinkscope.arguments import whole_number
from sinkscope.errors import SinkscopeError


def value_drain(record: xr.Dataset, first: int = 1) -> xr.Dataset:
    """How long the first tokens' values and keys are beside all others': value_ratio and key_ratio [layer,
    kv_head].

    For each sequence the mean Euclidean norm at positions < first over the mean norm at the rest, then the
    mean over sequences (those with no other token left out). Below 1 the value is drained; 1 is the ratio of
    a first token like any other (attrs["null"]). NaN for heads a layer lacks.
    Raises SinkscopeError if the record has no norms, `first` is below 1 or leaves no other token.
    """
    record, first = whole(record), whole_number(first, "first", 1)
    if first >= int(sequence_lengths(record).max()):
        raise SinkscopeError(
            f"first={first} leaves no other token in a text of {text_length(record)}: give a longer text or "
            "a smaller first."
        )
    ratios = {
        "value_ratio": _ratio(variable(record, "value_norm"), first),
        "key_ratio": _ratio(variable(record, "key_norm"), first),
    }
    result = xr.Dataset(ratios)
    result.attrs = {
        **record.attrs,
        "computed": f"mean norm of the first {first} tokens' values (keys) over the mean norm of the "
        "others', mean over sequences",
        "first": first,
        "null": 1.0,
    }
    return result


def _ratio(norm: xr.DataArray, first: int) -> xr.DataArray:
    is_sink = norm["token"] < first
    norm = norm.astype("float64")
    ratio = norm.where(is_sink).mean("token", skipna=True) / norm.where(~is_sink).mean("token", skipna=True)
    ratio.attrs = {}
    return ratio.mean("sequence", skipna=True)
