from collections.abc import Callable
from typing import Any, TypeVar, TypeVarTuple, overload

_T = TypeVar("_T")
_Arguments = TypeVarTuple("_Arguments")

@overload
def undisturbed(work: Callable[[*_Arguments], _T], *arguments: *_Arguments, obtain: None = None) -> _T: ...
@overload
def undisturbed(work: Callable[..., _T], *arguments: Any, obtain: Callable[[], Any]) -> _T: ...
def interrupted() -> bool: ...
