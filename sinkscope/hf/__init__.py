"""The one room that knows transformers: what it is called from release to release, and what is private to it.

Nothing outside this folder imports transformers, or says a name of its that has changed or may change. Each module here
is a handful of functions or classes of our own, and a new release of transformers touches this folder only.
"""

from __future__ import annotations

from sinkscope.hf.versions import check_version

check_version()
