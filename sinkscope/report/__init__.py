"""What `report()` gathers, and how it is shown and saved.

`sinkscope.report` is both this package and the function of that name, `sinkscope.report(model)`: the module
can be called.
"""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Any

from sinkscope.report.directory import check_directory
from sinkscope.report.document import Report

if TYPE_CHECKING:
    from sinkscope.report.gather import report

__all__ = ["Report", "check_directory", "report"]


class _CallableModule(types.ModuleType):
    """The package as the function `report`: importing any of its modules must not hide
    `sinkscope.report(model)`.
    """

    def __call__(self, *given: Any, **options: Any) -> Report:
        from sinkscope.report.gather import report

        return report(*given, **options)

    @property
    def __signature__(self) -> Any:
        import inspect

        from sinkscope.report.gather import report

        return inspect.signature(report)


def __getattr__(name: str) -> Any:
    if name != "report":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sinkscope.report.gather import report

    return report


sys.modules[__name__].__class__ = _CallableModule
