from typing import Final, Self

from typing_extensions import disjoint_base

WHY: Final[dict[int, str]]
WHY_NONE: Final[dict[int, str]]

@disjoint_base
class Replay:
    def __new__(cls) -> Self: ...
