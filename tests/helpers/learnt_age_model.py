"""The learnt age in plain Python: every pause is kept, and the estimate is made from all of them each time.

`learnt_age.pxd` says what is to be computed; here it is done without bins that are added up, rings or bits.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

PER_OCTAVE, BINS_BITS, SLOT_BITS, MEMORY, GROUPS = 8, 27, 5, 128, 32


@dataclass
class Counted:
    pause: int | None  # nanoseconds; None: long
    weight: float
    slot: int  # that in which it was counted


class Model:
    def __init__(self, break_even: int, now: int = 0) -> None:
        self.break_even = break_even
        self.slot_length = 1 << (break_even.bit_length() - SLOT_BITS)
        unit = 1 << max(0, break_even.bit_length() - BINS_BITS)
        steps = [*range(PER_OCTAVE)]
        steps += [(PER_OCTAVE + i) << octave for octave in range(BINS_BITS) for i in range(PER_OCTAVE)]
        self.edges = [step * unit for step in steps if step * unit < break_even] + [break_even]
        self.now_slot = now // self.slot_length
        self.young: list[int] = []  # since when they are free
        self.nr_older = self.most = 0
        self.counted: list[Counted] = []
        self.saved: dict[int, float] = {}  # by slot
        self.weight, self.fading, self.account = 1.0, 0.0, 0.0
        self.changed = True
        self.decide(now)

    def slot_of(self, time: int) -> int:
        return time // self.slot_length

    def time(self, now: int) -> None:
        if self.slot_of(now) == self.now_slot:
            return
        over = [since for since in self.young if (self.slot_of(since) + 1) * self.slot_length + self.break_even <= now]
        for slot in sorted({self.slot_of(since) for since in over}):
            self.account = max(0.0, self.account - self.saved.pop(slot, 0.0))
        for since in over:
            self.young.remove(since)
            self.nr_older += 1
            self.counted.append(Counted(None, self.weight, self.now_slot))
        self.fading = min(float(MEMORY), self.fading + self.slot_of(now) - self.now_slot)
        any_counted = any(each.slot == self.now_slot for each in self.counted)
        step = min(self.fading, MEMORY / GROUPS) if any_counted else 0.0
        self.fading -= step
        self.weight *= 1 + step / MEMORY
        self.now_slot, self.changed = self.slot_of(now), True

    def free(self, now: int, n: int = 1) -> None:
        self.time(now)
        self.young += [now] * n
        self.most = max(self.most, len(self.young) + self.nr_older)

    def reported(self, since: int, now: int) -> None:
        self.time(now)
        if since in self.young:
            slot = self.slot_of(since)
            self.saved[slot] = self.saved.get(slot, 0.0) + max(0, self.break_even - (now - since))

    def taken(self, since: int, now: int, reported: bool) -> None:
        self.time(now)
        if since not in self.young:
            self.nr_older -= 1
            return
        self.young.remove(since)
        self.changed = True
        pause, slot = now - since, self.slot_of(since)
        long = pause >= self.break_even
        self.counted.append(Counted(None if long else pause, self.weight, self.now_slot))
        if not long and reported:
            self.saved[slot] = max(0.0, self.saved[slot] - self.break_even)
            self.account += self.break_even - pause
        elif not long:
            self.account = max(0.0, self.account - pause)

    def group(self) -> float:
        """How many pauses were counted in the slot of the mean pause, of all slots but this one."""
        weight, total = 0.0, 0.0
        for slot in {each.slot for each in self.counted} - {self.now_slot}:
            inside = [each.weight for each in self.counted if each.slot == slot]
            weight += sum(inside)
            total += sum(inside) * len(inside)
        return total / weight if weight else 1.0

    def decide(self, now: int) -> None:
        bins = list(zip(self.edges, self.edges[1:], strict=False))
        prior = 0.5 * self.weight * self.group()
        at_risk = prior + sum(each.weight for each in self.counted if each.pause is None)
        outlasted = [min(now - (self.slot_of(since) + 1) * self.slot_length, self.break_even - 1)
                     for since in self.young if self.slot_of(since) < self.now_slot]  # fmt: skip
        cost = float(self.break_even)
        self.keeps, self.first, self.close = [False] * len(bins), self.break_even, False
        for number in reversed(range(len(bins))):
            begin, end = bins[number]
            short = sum(each.weight for each in self.counted if each.pause is not None and begin <= each.pause < end)
            short += prior / len(bins)
            at_risk += short + self.weight * sum(begin <= age < end for age in outlasted)
            staying = 1 - short / at_risk
            waiting = (end - begin) * (1 + staying) / 2 + staying * cost
            self.keeps[number] = waiting < self.break_even
            self.close |= abs(waiting - self.break_even) < 1e-6 * self.break_even
            cost = min(waiting, float(self.break_even))
            if not self.keeps[number]:
                self.first = begin
        self.decided_at, self.changed = now, False

    def age(self, now: int) -> int:
        self.time(now)
        if self.changed and now - self.decided_at >= self.slot_length // 16:
            self.decide(now)
        share = self.account / (self.most * self.break_even) - 1 if self.account else -1.0
        self.least = int(min(max(share, 0.0), 1.0) * self.break_even)
        return max(self.first, self.least)

    def is_old_enough(self, age: int) -> bool:
        if age >= self.break_even:
            return True
        return age >= self.least and not self.keeps[bisect_right(self.edges, age) - 1]
