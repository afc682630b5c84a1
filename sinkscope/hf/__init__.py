"""The one room that knows transformers: what it is called from release to release, and what is private to it.

Nothing outside this folder imports transformers, or says a name of its that has changed or may change. Each module here
is a handful of functions or classes of our own, and a new release of transformers touches this folder only.
"""

from importlib.metadata import version

from packaging.version import Version

from sinkscope.errors import SinkscopeError, warn

OLDEST = "5.21"  # 5.20 and older drop the soft cap of gemma2 under their default attention
NEWEST = "5.24"  # of the releases that were tried


def check_version() -> None:
    """Refuse a release of transformers older than `OLDEST`, and warn of one newer than `NEWEST`."""
    found = Version(version("transformers"))
    if found < Version(OLDEST):
        raise SinkscopeError(
            f"sinkscope needs transformers {OLDEST} or newer, and {found} is installed; "
            f"run `pip install 'transformers>={OLDEST}'`."
        )
    if found.release[:2] > Version(NEWEST).release[:2]:
        warn(
            f"transformers {found} is newer than the releases that sinkscope was tested with ({OLDEST} to {NEWEST}); "
            "if a model is refused or fails, try one of those."
        )


check_version()
