"""Policies by name, as the command line and the tables have them."""

from __future__ import annotations

import re
from collections.abc import Callable

from pagehint.policies.policy import Rule
from pagehint.policies.rules import Age, Auto, Delay, Linux, Optimum, Recorded, Series2019, Threshold

_UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0, "min": 60.0}
_DURATION = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)\s*([a-z]*)", re.ASCII)


def parse_seconds(text: str) -> float:
    """Return a time, such as ``"1s"``, ``"250 ms"`` or ``"0.1"``, in seconds.

    Raises
    ------
    ValueError
        If it is none.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"not a time: {text!r} (write it as 2s, 100ms or 0.5)")
    return float(match[1]) * _UNITS[match[2]]


def _parse_count(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,5}", text, re.ASCII):
        raise ValueError(f"not a number of granules: {text!r}")
    return int(text)


_BUILT_IN: dict[str, tuple[Callable[[], Rule], Callable[[str], Rule] | None, str]] = {
    "linux": (Linux, lambda text: Linux(delay=parse_seconds(text)), "Linux's free page reporting; a delay, 2s"),
    "recorded": (Recorded, None, "what the recorded kernel reported itself"),
    "v10": (Series2019, lambda text: Series2019(_parse_count(text)), "the series of 2019; max_pages, 16"),
    "threshold": (Threshold, lambda text: Threshold(_parse_count(text)), "pagehint's default; the threshold, 16"),
    "delay": (Delay, lambda text: Delay(parse_seconds(text)), "all that is free, after a delay, 2s"),
    "age": (Age, lambda text: Age(parse_seconds(text)), "what has been free for an age, 1s"),
    "auto": (Auto, lambda text: Auto(parse_seconds(text)), "an age that is learnt; the break-even age, 1s"),
    "optimum": (Optimum, lambda text: Optimum(parse_seconds(text)), "who knows the future; the break-even age, 1s"),
}

BUILT_IN = {name: meaning for name, (_, _, meaning) in _BUILT_IN.items()}
"""The names of the built-in policies, each with what it means, what may follow a colon, and its default."""


def rule_of(policy: str | Rule) -> Rule:
    """Return a policy that is given by its name or as an object.

    Raises
    ------
    ValueError
        If there is none of that name.
    TypeError
        If it is a class, or has no `decide` and `name`.
    """
    if isinstance(policy, type):
        raise TypeError(f"{policy.__name__} is a class, and a policy is an object of it: {policy.__name__}(...)")
    if isinstance(policy, str):
        return policy_of(policy)
    if not (hasattr(policy, "decide") and hasattr(policy, "name")):
        raise TypeError(f"a policy is a name or a pagehint.policies.Policy, not {type(policy).__name__}")
    return policy


def policy_of(name: str) -> Rule:
    """Return a built-in policy by its name.

    Parameters
    ----------
    name : str
        One of `BUILT_IN`, and after a colon its setting: ``"age:100ms"``, ``"linux:0.25s"``, ``"threshold:32"``.

    Raises
    ------
    ValueError
        If there is no such policy, or not with that setting.
    """
    base, colon, setting = name.strip().partition(":")
    if base not in _BUILT_IN:
        raise ValueError(f"no policy {name!r}; there are {', '.join(_BUILT_IN)}")
    default, with_setting, _ = _BUILT_IN[base]
    if not colon:
        return default()
    if with_setting is None:
        raise ValueError(f"policy {base!r} has no setting, but is asked for as {name!r}")
    try:
        return with_setting(setting)
    except ValueError as error:
        raise ValueError(f"policy {name!r}: {error}") from None
