"""What the balloon's driver needs of a transport; `VirtioPci` has it."""

from __future__ import annotations

from typing import Protocol

from pagehint.errors import HostError
from pagehint.virtio.split_queue import SplitQueue


class LostError(HostError):
    """The device was in no operation before it was notified."""


class Transport(Protocol):
    """A device, wherever it is."""

    @property
    def status(self) -> int: ...  # noqa: D102
    def probe(self) -> None: ...  # noqa: D102
    def is_running(self) -> bool: ...  # noqa: D102
    def features(self) -> int: ...  # noqa: D102
    def negotiate(self, accepted: int) -> None: ...  # noqa: D102
    def queue_size(self, number: int) -> int: ...  # noqa: D102
    def enable_queue(self, number: int, queue: SplitQueue) -> None: ...  # noqa: D102
    def start(self) -> None: ...  # noqa: D102
    def reset(self) -> None: ...  # noqa: D102
    def notify(self, number: int) -> bool: ...  # noqa: D102
    def interrupt_status(self) -> int: ...  # noqa: D102
    def read_config(self, offset: int, nr_bytes: int) -> int: ...  # noqa: D102
    def config_generation(self) -> int: ...  # noqa: D102
    def write_config(self, offset: int, nr_bytes: int, value: int) -> None: ...  # noqa: D102
