"""Numbers that JSON can carry."""

from __future__ import annotations

import math


def finite(value: float | None) -> float | None:
    """``value`` as a float, or None where it is infinite or not a number: JSON has neither."""
    return float(value) if value is not None and math.isfinite(value) else None
