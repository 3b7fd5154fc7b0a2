"""Programs that `pagehint run` starts, and Pythons with the start-up hook."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from pagehint_hook import VARIABLE

ROOT = Path(__file__).parents[2]
SETTINGS = '{"version": 1, "size": 1073741824}'
FOUND = f'import sys; sys.exit("{VARIABLE}" not in __import__("os").environ or "pagehint_hook" not in sys.modules)'


@functools.cache
def installed_hook() -> bool:
    """Whether Python finds the hook by itself, as where the package is installed."""
    environment = {**os.environ, VARIABLE: SETTINGS}
    return subprocess.run([sys.executable, "-P", "-c", FOUND], env=environment, timeout=60, check=False).returncode == 0


@functools.cache
def hook_folder() -> tempfile.TemporaryDirectory[str] | None:
    """A folder that has Python find the hook of the source tree; None where it is installed with the package."""
    if installed_hook():
        return None
    if "CI" in os.environ:
        pytest.fail("the start-up hook is not installed with the package")
    folder = tempfile.TemporaryDirectory(prefix="hook-")
    Path(folder.name, "pagehint.pth").write_text((ROOT / "pagehint.pth").read_text())
    Path(folder.name, "sitecustomize.py").write_text("import os, site; site.addsitedir(os.path.dirname(__file__))\n")
    return folder


def environment(**variables: str) -> dict[str, str]:
    """This environment, with the hook and these variables."""
    folder = hook_folder()
    path = [*([folder.name] if folder else []), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), **variables}


def python(*args: object, env: Mapping[str, str] | None = None, **options) -> subprocess.CompletedProcess[str]:
    """Run Python with the hook, in a folder with no pagehint in it; the variable is in `env`, or not."""
    command = [sys.executable, *map(str, args)]
    return subprocess.run(
        command,
        env=env or environment(),
        **{"cwd": "/", "capture_output": True, "text": True, "timeout": 120, "check": False, **options},
    )


def run(*args: object, **options) -> subprocess.CompletedProcess[str]:
    """Run a program by `pagehint run`."""
    return python("-m", "pagehint", "run", *args, **options)
