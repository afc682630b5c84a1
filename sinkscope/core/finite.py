"""Numbers that are not finite, and the weights to blame for them."""

from __future__ import annotations

from torch import nn

from sinkscope.errors import SinkscopeError


def not_finite(what: str, model: nn.Module) -> SinkscopeError:
    """The error for NaN or infinity, naming the weights to blame if it is them."""
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            cause = f": the weights {name} are not finite; load the model again or repair its checkpoint."
            break
    else:
        cause = "; all weights are finite, so look at the inputs or the dtype (float16 overflows: try bfloat16)."
    return SinkscopeError(f"{what} hold NaN or infinity{cause}")
