"""Huge pages for a guest's RAM: of which kinds, and what is said where the machine has none."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pagehint.errors import HostError

HUGETLB: Final = "2MiB"  # from the machine's pool of such pages
THP: Final = "thp"  # transparent: ordinary memory, which the kernel puts together where it can
HUGE_PAGE: Final = 2 << 20

_POOL: Final = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
_TRANSPARENT: Final = Path("/sys/kernel/mm/transparent_hugepage")


def require_kind(hugepages: bool | str) -> str | None:
    """Return the kind of huge pages that a caller means, None for none; ValueError if there is no such kind."""
    if isinstance(hugepages, bool):
        return HUGETLB if hugepages else None
    if isinstance(hugepages, str) and hugepages in (HUGETLB, THP):
        return hugepages
    raise ValueError(f"hugepages is True, False, {HUGETLB!r} or {THP!r}, not {hugepages!r}")


def _number(name: str) -> int:
    try:
        return int((_POOL / name).read_text())
    except OSError:
        return 0


def free_pages() -> int:
    """Return how many pages of the pool are free, and not promised to anybody."""
    return max(_number("free_hugepages") - _number("resv_hugepages"), 0)


def shortage(nr_bytes: int, what: str, why: str) -> str:
    """Return in words why the pool does not have so many bytes for something, and the command that helps."""
    needed, free = -(-nr_bytes // HUGE_PAGE), free_pages()
    if free >= needed:
        return f"{needed} huge pages of 2 MiB for {what} are refused, although {free} are free: {why}"
    enough = _number("nr_hugepages") + needed - free
    return (
        f"{needed} huge pages of 2 MiB are needed for {what}, and {free} are free; as root:"
        f" echo {enough} > {_POOL / 'nr_hugepages'}"
    )


def no_pool(why: str) -> HostError:
    """Return the error for a machine whose kernel has no pool."""
    return HostError(f"this machine has no huge pages of 2 MiB ({why}); hugepages={THP!r} is ordinary memory")


def require_transparent() -> None:
    """Raise HostError unless the kernel puts huge pages into files in memory whose mappings ask for them."""
    for where in (_TRANSPARENT / "hugepages-2048kB" / "shmem_enabled", _TRANSPARENT / "shmem_enabled"):
        try:
            setting = where.read_text().partition("[")[2].partition("]")[0]
        except OSError:
            continue  # kernels before 6.11 have the second alone
        if setting == "inherit":
            continue  # from the second
        if setting in ("never", "deny"):
            raise HostError(
                f"transparent huge pages for files in memory are off ({setting!r}); as root: echo advise > {where}"
            )
        return
    raise HostError(f"this machine's kernel has no transparent huge pages for files in memory: no {_TRANSPARENT}")
