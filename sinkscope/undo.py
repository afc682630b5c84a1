"""Taking off what was put on a model, whatever comes in between: an error, an interrupt on any line, forgetting.

Every clean-up is noted before the change that it undoes, and may be done twice. Nobody can note it for an interrupt
that comes between the end of a `with` block and the first line of `__exit__`, but a `with` statement holds on to the
`__exit__` of its manager, and drops it however it ends. So what is dropped cleans up, if it was not called.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from sinkscope.errors import SinkscopeError

Made = TypeVar("Made")


def holding(lock: Any, act: Callable[..., Made], *given: Any) -> Made:
    """Act while a lock is held; on one line, since an interrupt between two would keep it."""
    with lock: return act(*given)  # fmt: skip  # noqa: E701


class leaving:
    """Decorates an `__exit__` that may be called twice: a `with` statement that could not call it does so by ending.

    Its `__enter__` has to say that it is `entering`.
    """

    def __init__(self, leave: Callable[..., None]) -> None:
        self._leave = leave

    def __get__(self, owner: Any, kind: type | None = None) -> Callable[..., None]:
        if owner is None:
            return self._leave
        guards: list[Any] = []
        left = partial(self._call, owner, guards)
        _LOOKED_UP[owner] = weakref.ref(left), guards, self._leave
        return left

    def _call(self, owner: Any, guards: list[Any], *exception: Any) -> None:
        self._leave(owner, *exception)
        for guard in guards:
            guard.detach()


_LOOKED_UP: WeakKeyDictionary[Any, tuple[Any, list[Any], Callable[..., None]]] = WeakKeyDictionary()
"""Of a manager the `__exit__` that was asked for last: before it is entered by a `with` statement, by this."""


def entering(owner: Any) -> None:
    """Have what a `with` statement looked up as `__exit__` of a manager leave it when it is dropped."""
    looked_up, guards, leave = _LOOKED_UP.get(owner, (None, [], None))
    left = None if looked_up is None else looked_up()
    if left is not None and leave is not None:
        guards.append(weakref.finalize(left, leave, owner, GeneratorExit, None, None))
        guards[0].atexit = False


class Undo:
    """Clean-ups, done in reverse at the end of a `with` block, or when the object is gone."""

    def __init__(self) -> None:
        self._acts: list[Callable[[], object]] = []
        self._forgotten: Any = None  # closes it when it is gone

    def __enter__(self) -> Undo:
        entering(self)
        return self

    @leaving
    def __exit__(self, *_: Any) -> None:
        self.close()

    @property
    def is_entered(self) -> bool:
        """Whether there is something to undo."""
        return bool(self._acts)

    def close(self) -> None:
        """Undo everything now."""
        _close(self._acts)
        if self._forgotten is not None:
            self._forgotten.detach()
            self._forgotten = None

    def callback(self, act: Callable[..., object], *given: Any) -> None:
        """Note a clean-up that may be done twice, before the change that it undoes."""
        if self._forgotten is None:
            self._forgotten = weakref.finalize(self, _close, self._acts)
            self._forgotten.atexit = False
        self._acts.append(partial(act, *given))

    def hang(self, module: Any, hook: Callable[..., Any], *, before: bool = False, **options: Any) -> None:
        """Hang a hook on a module, behind its forward pass or before it; `options` are those of torch."""
        self.callback(_take_off, weakref.ref(module), hook)
        (module.register_forward_pre_hook if before else module.register_forward_hook)(hook, **options)


def _close(acts: list[Callable[[], object]]) -> None:
    try:
        while acts:
            acts[-1]()
            acts[-1:] = []
    except BaseException:  # an interrupt: the clean-up that it hit is done again, and then the others
        try:
            if acts:
                acts.pop()()
        finally:
            _close(acts)
        raise


def _take_off(where: Callable[[], Any], hook: Callable[..., Any]) -> None:
    """Take a hook off a module by what it is: an interrupt may have lost torch's handle of it."""
    module = where()
    for hooks in ("_forward_pre_hooks", "_forward_hooks") if module is not None else ():
        for number in [number for number, each in getattr(module, hooks).items() if each is hook]:
            for marks in ("_with_kwargs", "_always_called", ""):  # the hook itself last, by which it is found again
                getattr(module, hooks + marks, {}).pop(number, None)


class Hook:
    """A method of a scope as a hook on a model: it does not keep the scope, and goes into no copy of the model."""

    def __init__(self, method: Callable[..., Any], *given: Any) -> None:
        self._method, self._given = weakref.WeakMethod(method), given

    def __call__(self, *args: Any) -> Any:
        method = self._method()
        return None if method is None else method(*self._given, *args)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise SinkscopeError(
            "this model carries a scope, which would come along into a copy or a file of it; leave the scope first, or "
            "copy or save model.state_dict()."
        )
