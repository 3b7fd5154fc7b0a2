"""What some features need and `pip install pagehint` alone does not install."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from pagehint.errors import PageHintError


def require(module: str, what: str, extra: str) -> ModuleType:
    """Import a module; raise an error that names the extra to install if it cannot be imported."""
    try:
        return import_module(module)
    except ImportError:
        raise PageHintError(f"{what} needs {module}: pip install 'pagehint[{extra}]'") from None
