from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

_T = TypeVar("_T")
_Arguments = TypeVarTuple("_Arguments")

def undisturbed(work: Callable[[*_Arguments], _T], *arguments: *_Arguments) -> _T: ...
def interrupted() -> bool: ...
