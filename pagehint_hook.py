"""What a Python that `pagehint run` has started does at its start: wait for NumPy, and then install the arena.

`pagehint.pth`, in the folder of installed packages, imports this where the variable is set. It is outside the package,
because importing that imports NumPy. That must not be so early: a program may set OMP_NUM_THREADS first, folders of
packages may not be on the path yet, and many a Python, such as a resource tracker, never needs it. So until a program
imports NumPy this costs next to nothing, and changes nothing but `sys.meta_path`.
"""

from __future__ import annotations

import os
import sys
from _thread import get_ident
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

VARIABLE = "PAGEHINT_RUN"  # `pagehint.pth` has this name, too


class ImportsEnd:
    """A finder that finds nothing of its own, but learns when an import of NumPy has ended.

    While pagehint itself is being imported it waits for the end of that, since what installs is not complete before.
    """

    names = ("numpy", "pagehint")

    def __init__(self, then: Callable[[], None]) -> None:
        self.then = then
        self.importing: set[str] = set()
        self.asking: set[tuple[int, str]] = set()  # threads that ask the others now, and for what

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return what the others find, for a module of `names`; nothing to one of them that asks us in turn."""
        question = (get_ident(), name)
        if name not in self.names or question in self.asking:
            return None
        self.asking.add(question)
        try:
            for finder in sys.meta_path:
                find = None if finder is self else getattr(finder, "find_spec", None)
                spec: ModuleSpec | None = find(name, path, target) if find else None
                if spec is not None:
                    self.follow(name, spec.loader)
                    return spec
        finally:
            self.asking.discard(question)
        return None

    def follow(self, name: str, loader: object) -> None:
        """Have a module's loader say when it is done. Afterwards it is as it was."""
        execute: Callable[[ModuleType], None] | None = getattr(loader, "exec_module", None)
        if execute is None or not isinstance(getattr(loader, "__dict__", None), dict):
            return

        def exec_module(module: ModuleType) -> None:
            vars(loader).pop("exec_module", None)
            self.importing.add(name)
            try:
                execute(module)
            finally:
                self.importing.discard(name)
            self.end()

        vars(loader)["exec_module"] = exec_module

    def end(self) -> None:
        """Go on, once, when NumPy is there and nothing of `names` is half imported."""
        if self.importing or "numpy" not in sys.modules:
            return
        try:
            sys.meta_path.remove(self)
        except ValueError:  # another thread is doing it
            return
        self.then()


_watching = False


def watch() -> None:
    """Install the arena that the variable describes when NumPy has been imported. The second call does nothing.

    Python reads the hooks of a virtual environment twice.
    """
    global _watching
    if _watching:
        return
    _watching = True
    text = os.environ[VARIABLE]
    ended = ImportsEnd(lambda: install(text))
    sys.meta_path.insert(0, ended)
    ended.end()  # another hook may have imported it


def install(text: str) -> None:
    """Install the arena. What goes wrong is one line, and the program goes on without."""
    try:
        from pagehint.running.start import start

        start(text)
    except Exception as error:
        if sys.stderr is not None:
            reason = " ".join(str(error).split()) or repr(error)
            sys.stderr.write(f"pagehint: not installed in process {os.getpid()}: {reason}\n")
