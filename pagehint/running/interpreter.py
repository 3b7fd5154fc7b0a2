"""Python as it was started, once more: for a program, with the variable that has the hook install the arena.

Nothing of the program's `sys.argv`, `sys.path`, `__main__`, exit status or signals is ours, as Python itself starts it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from pagehint.errors import PageHintError
from pagehint.malloc.library import LIBRARY, with_library
from pagehint.running.settings import VARIABLE, Settings

_ASK = f"""if True:
    import sys
    with open("/proc/self/maps") as maps:
        sys.stdout.write(f"{{'pagehint_hook' in sys.modules}} {{{LIBRARY.name!r} in maps.read()}}")
"""


def python() -> list[str]:
    """Return this interpreter, and its own options if it was started as ``python OPTIONS -m pagehint``.

    The options of a script's first line, as in the command `pagehint`, are an installer's, and not for a program.
    """
    if not sys.executable:
        raise PageHintError("this Python does not know its own executable (sys.executable), so it cannot start one")
    options = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]  # up to the script, or the module's name
    if options[-1:] == ["pagehint"] and len(options) > 1:
        options[-2:] = ["".join(options[-2:])]  # "-m", "pagehint" is also written "-mpagehint", or "-Pm", "pagehint"
    if not options or not options[-1].startswith("-") or not options[-1].endswith("mpagehint"):
        return [sys.executable]
    beside = options[-1].removesuffix("mpagehint")
    return [sys.executable, *options[:-1], *([beside] if beside != "-" else [])]


def environment(settings: Settings) -> dict[str, str]:
    """Return this process's environment, with what has programs find the settings, and load malloc's library if so set.

    Raises
    ------
    PageHintError
        If that library cannot be had.
    """
    variables = {**os.environ, VARIABLE: settings.to_text()}
    return variables if settings.malloc is None else with_library(variables)


def require_hook(interpreter: Sequence[str], settings: Settings) -> None:
    """Start the interpreter once, and ask whether the hook runs there, and malloc's library is there if so set.

    Raises
    ------
    PageHintError
        If not, with what can be done about it.
    """
    asked = subprocess.run(
        [*interpreter, "-c", _ASK],
        env=environment(settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    hooked, _, preloaded = asked.stdout.partition(" ")
    if hooked == "True" and settings.malloc is not None and preloaded != "True":
        said = f": {' '.join(asked.stderr.split())}" if asked.stderr else ""
        raise PageHintError(f"{interpreter[0]} does not load {LIBRARY.name}, as a static program{said}")
    if hooked == "True":
        return
    if sys.flags.no_site:
        raise PageHintError("python -S runs no start-up hooks, and so no program with pagehint")
    raise PageHintError(
        f"the start-up hook does not run in {' '.join(interpreter)}: its folders of installed packages have no"
        " pagehint.pth, as after pip install --target or with a source tree on PYTHONPATH; pip install pagehint there"
    )
