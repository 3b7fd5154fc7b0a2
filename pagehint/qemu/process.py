"""QEMU as a child process: how it is started, what it says, and that it ends when this process does."""

from __future__ import annotations

import fcntl
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pagehint.errors import HostError
from pagehint.qemu.huge_pages import HUGETLB
from pagehint.qemu.ram import PCI_HOLE, GuestRam

BINARY: Final = "qemu-system-x86_64"
# A trace of each discard that was done, and an error for each that was not.
_DISCARD = re.compile(rb"ram_block_discard_range \S+ \+ (0x[0-9a-f]+): .*ret: 0")
_REFUSED = re.compile(rb"ram_block_discard_range: Failed")
_PIPE, _PAUSE = 1 << 20, 0.01  # bytes that QEMU may say before it waits, and seconds between looks at them
_END, _LAST_WORDS = 10.0, 1.0  # seconds to wait for its end, and for what it said, after it was killed


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

    The machine runs, so that its timers and devices do, and none of its processors touches memory.
    """
    fd = os.memfd_create("pagehint-firmware", os.MFD_CLOEXEC)
    image = bytearray(b"\xf4" * 65536)
    image[-16:-12] = b"\xfa\xf4\xeb\xfd"  # an x86 processor begins 16 bytes below the end
    os.write(fd, image)
    return fd


def qemu_command(
    binary: str, ram: GuestRam, reporting: bool, fds: Sequence[int], options: Sequence[str], count_discards: bool
) -> list[str]:
    """Return the command line of QEMU, whose memory, firmware and two connections are these file descriptors.

    Socket pairs and memfds throughout: nothing is left in the file system, whatever happens.
    """
    memory, image, qtest, qmp = fds
    # Huge pages are the guest's already: to have all of them promised again would take them from the pool at a restart.
    promised = ",reserve=off" if ram.hugepages == HUGETLB else ""
    command = [
        binary, "-accel", "tcg", "-nodefaults", "-no-user-config", "-display", "none", "-name", "pagehint",
        "-m", f"{ram.nr_bytes >> 20}M",
        "-object",
        f"memory-backend-file,id=ram,size={ram.nr_bytes},mem-path=/proc/self/fd/{memory},share=on{promised}",
        "-machine", f"pc,memory-backend=ram,max-ram-below-4g={PCI_HOLE}",
        "-bios", f"/proc/self/fd/{image}",
        "-device", f"virtio-balloon-pci,id=balloon,disable-legacy=on,"
        f"free-page-reporting={'on' if reporting else 'off'}",
        "-chardev", f"socket,id=qtest,fd={qtest}", "-qtest", "chardev:qtest", "-qtest-log", "none",
        "-chardev", f"socket,id=qmp,fd={qmp}", "-mon", "chardev=qmp,mode=control",
        *(["-trace", "ram_block_discard_range"] if count_discards else []),
        *options,
    ]  # fmt: skip
    return ending_with_us(command)


def require_options(options: Sequence[str]) -> list[str]:
    """Return options of a command line; TypeError or ValueError if they can be none."""
    if isinstance(options, str) or not all(isinstance(option, str) for option in options):
        raise TypeError(f"options are a list of strings, one for each word, not {options!r}")
    for option in options:
        try:
            usable = b"\0" not in os.fsencode(option)
        except UnicodeEncodeError:
            usable = False
        if not usable:
            raise ValueError(f"{option!r} of the options cannot be a word of a command line")
    return list(options)


def ending_with_us(command: list[str]) -> list[str]:
    """Return a command that the kernel kills when the thread that started it ends, also when this process is killed.

    Without `setpriv` it outlives a process that a signal ends, or that leaves with os._exit.
    """
    setpriv = shutil.which("setpriv")
    if not setpriv:
        return command
    # The kernel does not act for a parent that had ended before; the shell looks whether it is still there.
    still_here = ["/bin/sh", "-c", '[ "$PPID" = "$0" ] && exec "$@"', str(os.getpid())]
    return [setpriv, "--pdeathsig", "KILL", "--", *still_here, *command]


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
    options : sequence of str, default ()
        More words for its command line.
    count_discards : bool, default True
        Whether it traces its discards.

    Attributes
    ----------
    qtest, qmp : socket.socket
        Connected to it, until `close_sockets`.
    """

    def __init__(
        self, binary: str, ram: GuestRam, reporting: bool, options: Sequence[str] = (), count_discards: bool = True
    ) -> None:
        self.qtest, qtest = socket.socketpair()
        self.qmp, qmp = socket.socketpair()
        image = firmware()
        # Not 0 to 2, even if those are closed here: they are QEMU's standard input, output and error.
        self._fds = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in (ram.fd, image, qtest.fileno(), qmp.fileno())]
        command = qemu_command(binary, ram, reporting, self._fds, options, count_discards)
        self._discards = Discards(0, 0, 0)
        self._said: deque[str] = deque(maxlen=20)
        self._started, self._ending = threading.Event(), threading.Event()
        self._failure: OSError | None = None
        self._owner = ram.owner
        self._thread = threading.Thread(target=self._run, args=(command,), name="pagehint-qemu", daemon=True)
        try:
            self._thread.start()
            self._started.wait()
        finally:
            qtest.close()
            qmp.close()
            for fd in (image, *self._fds):
                os.close(fd)
        if self._failure is not None:
            self.close_sockets()
            raise HostError(f"{binary} cannot be run: {self._failure}")

    def _run(self, command: list[str]) -> None:
        """Start it, and listen to what it says until it ends. The kernel ends it with this thread."""
        try:
            # In a session of its own: Ctrl-C in a terminal does not go there, and what a wrapper starts ends with it.
            self._process = subprocess.Popen(
                command, pass_fds=self._fds, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            )  # fmt: skip
        except OSError as error:
            self._failure = error
            return
        finally:
            self._started.set()
        assert self._process.stderr is not None
        with self._process.stderr as stderr:
            with suppress(OSError):  # it is smaller then
                fcntl.fcntl(stderr, fcntl.F_SETPIPE_SZ, _PIPE)
            begun = b""
            # Many lines at a time: to be woken by each one, of which there is one a discard, takes longer than the
            # discard of a huge page. QEMU waits only for room in the pipe.
            while arrived := os.read(stderr.fileno(), _PIPE):
                lines, _, begun = (begun + arrived).rpartition(b"\n")
                self._listen(lines)
                self._ending.wait(_PAUSE)
            self._listen(begun)
        self._process.wait()

    def _listen(self, lines: bytes) -> None:
        if not lines:
            return
        # All lines in one call, as nearly always each is a trace: meanwhile the thread that reports waits for the GIL.
        traced, failed = _DISCARD.findall(lines), 0
        if len(traced) <= lines.count(b"\n"):
            for line in lines.split(b"\n"):
                if not _DISCARD.search(line):
                    failed += bool(_REFUSED.search(line))
                    self._said.append(line.decode(errors="replace").strip())
        before = self._discards
        self._discards = Discards(
            before.calls + len(traced) + failed,
            before.nr_bytes + sum(int(nr_bytes, 16) for nr_bytes in traced),
            before.failed + failed,
        )

    @property
    def pid(self) -> int:
        """Its process ID."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None if self.owned else Path(f"/proc/{self.pid}").exists()

    def is_ending(self) -> bool:
        """Whether it has ended, or does now: its sockets close before the kernel says so, which may take long."""
        if self.hangs_up(_LAST_WORDS):
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_END)
        return not self.running

    def hangs_up(self, seconds: float) -> bool:
        """Whether the other end of its connection closes in time."""
        if self.qtest.fileno() < 0:
            return True
        ended = select.poll()
        ended.register(self.qtest, 0)  # POLLHUP is always asked for
        return any(event & select.POLLHUP for _, event in ended.poll(seconds * 1000))

    @property
    def last_words(self) -> str:
        """Why it has ended, or does now, in its own words if there are any; else how. Nothing if it goes on."""
        if not self.is_ending():
            return ""
        if threading.current_thread() is not self._thread:
            self._thread.join(_LAST_WORDS)  # not for ever: another process may have its standard error open
        return self.said or f"it ended with status {self._process.returncode}, and said nothing"

    @property
    def discards(self) -> Discards:
        """What it has said of its discards so far."""
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
        """Whether it is this process's, and not that of a process which this one was forked from."""
        return self._owner.is_here

    def send_kill(self) -> None:
        """Have it end soon, with all processes of its session."""
        self._ending.set()
        if self._process.poll() is None:  # else its number may be another's
            os.killpg(self.pid, signal.SIGKILL)

    def kill(self) -> None:
        """End it, and return when it has let go of the memory. In a forked child nothing happens."""
        if not self.owned:
            return
        self.send_kill()
        self._process.wait()
        # A process that has the other end may have the RAM, too: QEMU, if the one that was started is a wrapper.
        if not self.hangs_up(_END):
            raise HostError(f"process {self.pid} has ended, and QEMU, which it had started, has not")
        if threading.current_thread() is not self._thread:
            self._thread.join(_LAST_WORDS)  # not for ever: a child forked meanwhile may have the pipe open

    def close_sockets(self) -> None:
        """Close the connections."""
        self.qtest.close()
        self.qmp.close()
