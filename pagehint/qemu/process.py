"""QEMU as a process of ours: how it is started, what it says, and that it ends when we do."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import threading
from collections import deque
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Final

from pagehint.errors import HostError
from pagehint.qemu.ram import PCI_HOLE, GuestRam

BINARY: Final = "qemu-system-x86_64"
# A trace of each discard that was done, and an error for each that was not.
_DISCARD = re.compile(rb"ram_block_discard_range \S+ \+ (0x[0-9a-f]+): .*ret: 0")
_REFUSED = re.compile(rb"ram_block_discard_range: Failed")


@dataclass(frozen=True)
class Discards:
    """What QEMU was seen to do with the guest's RAM: calls, bytes dropped, and calls that the host's kernel refused."""

    calls: int
    nr_bytes: int
    failed: int


def find_qemu(qemu: str | os.PathLike[str] | None) -> str:
    """Return the path of QEMU, or raise HostError that says how to come by it."""
    found = shutil.which(os.fspath(qemu) if qemu is not None else BINARY)
    if found is None:
        raise HostError(
            f"{os.fspath(qemu) if qemu is not None else BINARY} is not here: on Debian, apt install qemu-system-x86;"
            " or name another with qemu="
        )
    return found


def firmware() -> int:
    """Return a memfd with firmware for a PC that stops its only processor for ever: cli, hlt, and again.

    The machine then runs, so that its timers and devices do, and nothing in it but us touches memory.
    """
    fd = os.memfd_create("pagehint-firmware", os.MFD_CLOEXEC)
    image = bytearray(b"\xf4" * 65536)
    image[-16:-12] = b"\xfa\xf4\xeb\xfd"  # where an x86 processor begins, 16 bytes below the end
    os.write(fd, image)
    return fd


class QemuProcess:
    """A PC without anything but RAM and a balloon, whose guest is played from here.

    Parameters
    ----------
    binary : str
        Path of QEMU.
    ram : GuestRam
        Its memory.
    reporting : bool
        Whether the balloon offers free page reporting.

    Attributes
    ----------
    qtest, qmp : socket.socket
        Connected to it, until `close_sockets`.
    """

    def __init__(self, binary: str, ram: GuestRam, reporting: bool) -> None:
        self.qtest, qtest = socket.socketpair()
        self.qmp, qmp = socket.socketpair()
        image = firmware()
        # Socket pairs and memfds throughout: nothing is left in the file system, whatever happens.
        command = [
            binary, "-accel", "tcg", "-nodefaults", "-no-user-config", "-display", "none", "-name", "pagehint",
            "-m", f"{ram.nr_bytes >> 20}M",
            "-object", f"memory-backend-file,id=ram,size={ram.nr_bytes},mem-path=/proc/self/fd/{ram.fd},share=on",
            "-machine", f"pc,memory-backend=ram,max-ram-below-4g={PCI_HOLE}",
            "-bios", f"/proc/self/fd/{image}",
            "-device", f"virtio-balloon-pci,id=balloon,disable-legacy=on,"
            f"free-page-reporting={'on' if reporting else 'off'}",
            "-chardev", f"socket,id=qtest,fd={qtest.fileno()}", "-qtest", "chardev:qtest", "-qtest-log", "none",
            "-chardev", f"socket,id=qmp,fd={qmp.fileno()}", "-mon", "chardev=qmp,mode=control",
            "-trace", "ram_block_discard_range",
        ]  # fmt: skip
        # Its end must follow ours, also when we are killed. The kernel goes by the thread that started it. Without
        # setpriv it outlives only such a process as is killed with SIGKILL or leaves with os._exit.
        setpriv = shutil.which("setpriv")
        if setpriv:
            command = [setpriv, "--pdeathsig", "KILL", "--", *command]
        self._fds = (ram.fd, image, qtest.fileno(), qmp.fileno())
        self._lock = threading.Lock()
        self._discards = Discards(0, 0, 0)
        self._said: deque[str] = deque(maxlen=20)
        self._started = threading.Event()
        self._failure: OSError | None = None
        self._owner = os.getpid()
        self._thread = threading.Thread(target=self._run, args=(command,), name="pagehint-qemu", daemon=True)
        try:
            self._thread.start()
            self._started.wait()
        finally:
            qtest.close()
            qmp.close()
            os.close(image)
        if self._failure is not None:
            self.close_sockets()
            raise HostError(f"{binary} cannot be run: {self._failure}")

    def _run(self, command: list[str]) -> None:
        """Start it, and listen to what it says until it ends: the thread that its life hangs on."""
        try:
            self._process = subprocess.Popen(
                command, pass_fds=self._fds, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
        except OSError as error:
            self._failure = error
            return
        finally:
            self._started.set()
        assert self._process.stderr is not None
        with self._process.stderr as stderr:
            for line in stderr:
                self._listen(line)
        self._process.wait()

    def _listen(self, line: bytes) -> None:
        match = _DISCARD.search(line)
        nr_bytes = int(match[1], 16) if match else 0
        failed = bool(_REFUSED.search(line))
        if match is None:
            self._said.append(line.decode(errors="replace").strip())
        if match or failed:
            with self._lock:
                calls, before, failures = astuple(self._discards)
                self._discards = Discards(calls + 1, before + nr_bytes, failures + failed)

    @property
    def pid(self) -> int:
        """Its process ID."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._thread.is_alive()

    @property
    def discards(self) -> Discards:
        """What it has said of its discards so far."""
        with self._lock:
            return self._discards

    @property
    def said(self) -> str:
        """The last lines that it wrote to its standard error, traces apart."""
        return "\n".join(self._said)

    @property
    def resident_bytes(self) -> int:
        """Resident memory of the process, the guest's RAM that it has touched included; 0 when it has ended."""
        try:
            fields = Path(f"/proc/{self.pid}/statm").read_text().split()
        except OSError:
            return 0
        return int(fields[1]) * os.sysconf("SC_PAGESIZE")

    @property
    def owned(self) -> bool:
        """Whether it is this process's, and not that of a parent which this was forked from."""
        return os.getpid() == self._owner

    def send_kill(self) -> None:
        """Have it end soon."""
        self._process.kill()

    def kill(self) -> None:
        """End it, and return when it has no memory any more. In a forked child nothing happens."""
        if self.owned:
            self.send_kill()
            self._thread.join()

    def close_sockets(self) -> None:
        """Close the connections."""
        self.qtest.close()
        self.qmp.close()
