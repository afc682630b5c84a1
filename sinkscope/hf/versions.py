"""The releases of transformers that were tried."""

from __future__ import annotations

import warnings
from importlib.metadata import version

from packaging.version import Version

from sinkscope.errors import SinkscopeError

OLDEST = "5.21"  # 5.20 and older drop the soft cap of gemma2 under their default attention
NEWEST = "5.24"


def check_version() -> None:
    """Refuse a release of transformers that is too old; warn of one that is newer than any that was tried.

    Raises:
        SinkscopeError: the release is older than `OLDEST`.
    """
    found = Version(version("transformers"))
    if found < Version(OLDEST):
        raise SinkscopeError(
            f"sinkscope needs transformers {OLDEST} or newer, and {found} is installed; "
            f"run `pip install 'transformers>={OLDEST}'`."
        )
    if found.release[:2] > Version(NEWEST).release[:2]:
        warnings.warn(
            f"transformers {found} is newer than the releases that sinkscope was tested with ({OLDEST} to {NEWEST}); "
            "if a model is refused or fails, try one of those.",
            stacklevel=2,
        )
