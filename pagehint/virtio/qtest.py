"""The wire: QEMU's qtest protocol, with which another program reads and writes a machine's ports and memory."""

from __future__ import annotations

import re
import socket
import threading
import time

from pagehint.errors import HostError, HostTimeoutError
from pagehint.virtio.undisturbed import undisturbed


class Qtest:
    """A client of the qtest protocol over a connected socket. Any thread may use it, one command at a time.

    Parameters
    ----------
    connection : socket.socket
        Connected to QEMU's qtest character device; only this may use it. The caller closes it.
    timeout : float, default 10.0
        Seconds until a command that is not answered raises `HostTimeoutError`.

    Notes
    -----
    A command and its answer are a line of text each, such as "readl 0xe0000000" and "OK 0x1":
    docs/devel/qtest of QEMU describes it. Answers are counted, so that a late answer to a command that timed out is not
    taken for the next one's. An interrupt waits for the end of a command: `undisturbed`.
    """

    def __init__(self, connection: socket.socket, timeout: float = 10.0) -> None:
        connection.settimeout(timeout)
        self._connection = connection
        self._lock = threading.Lock()
        self._received = bytearray()
        self._owed = 0  # answers that are still to come

    @property
    def timeout(self) -> float:
        """Seconds that a command may take."""
        return self._connection.gettimeout() or 0.0

    def command(self, text: str) -> str:
        """Send a command and return what follows OK in its answer.

        Raises
        ------
        HostTimeoutError
            If no answer comes in time.
        HostError
            If the other end has gone, or refuses the command.
        """
        return str(undisturbed(self._commands, [text])[0])

    def _commands(self, texts: list[str]) -> list[str]:
        """Send commands together, which are done one after the other; returns what follows OK in their answers."""
        text = "; ".join(texts)
        with self._lock:
            try:
                self._owed += len(texts)
                self._connection.sendall("".join(f"{each}\n" for each in texts).encode())
                deadline = time.monotonic() + self.timeout
                answers = []
                while self._owed:
                    answers.append(self._line(deadline))
            except TimeoutError:
                raise HostTimeoutError(f"QEMU did not answer {text!r} in {self.timeout:g} s") from None
            except OSError as error:
                raise HostError(f"QEMU has gone: {error.strerror or error} at {text!r}") from None
        return [_after_ok(*each) for each in zip(texts, answers[-len(texts) :], strict=True)]

    def _line(self, deadline: float) -> str:
        """Return the next answer. Lines about interrupts are not answers, and are skipped."""
        while True:
            line, found, rest = self._received.partition(b"\n")
            if not found:
                if len(line) > _LONGEST_ANSWER:
                    raise HostError(f"QEMU began an answer of over {_LONGEST_ANSWER} bytes")
                received = self._connection.recv(4096)
                if not received:
                    raise ConnectionResetError("the connection is closed")
                self._received += received
            else:
                self._received = rest
                if not line.startswith(b"IRQ "):
                    self._owed -= 1
                    return line.decode(errors="replace")
            if time.monotonic() > deadline:  # each recv is in time where there is always more to read
                raise TimeoutError

    def read(self, address: int, nr_bytes: int) -> int:
        """Return the number of 1, 2, 4 or 8 bytes at a physical address."""
        return self._number(_read(address, nr_bytes), nr_bytes)

    def write(self, address: int, nr_bytes: int, value: int) -> None:
        """Write a number of 1, 2, 4 or 8 bytes at a physical address."""
        self.command(_write(address, nr_bytes, value))

    def read_then_write(self, source: tuple[int, int], target: tuple[int, int], value: int) -> int:
        """Return a number at one place, and then write another one to another; a place is an address and its bytes.

        Both commands go out together: one wait for the other end, not two.
        """
        read = _read(*source)
        return _as_number(read, undisturbed(self._commands, [read, _write(*target, value)])[0], source[1])

    def read_port(self, port: int, nr_bytes: int) -> int:
        """Return the number of 1, 2 or 4 bytes at an I/O port."""
        _require_place("port ", port, nr_bytes, _PORTS)
        return self._number(f"in{_WIDTHS[nr_bytes]} {port:#x}", nr_bytes)

    def write_port(self, port: int, nr_bytes: int, value: int) -> None:
        """Write a number of 1, 2 or 4 bytes at an I/O port."""
        _require_place("port ", port, nr_bytes, _PORTS)
        _require_fit(port, nr_bytes, value)
        self.command(f"out{_WIDTHS[nr_bytes]} {port:#x} {value:#x}")

    def _number(self, text: str, nr_bytes: int) -> int:
        return _as_number(text, self.command(text), nr_bytes)


_WIDTHS = {1: "b", 2: "w", 4: "l", 8: "q"}
_NUMBER = re.compile(r"0x[0-9a-fA-F]+")
_LONGEST_ANSWER = 1 << 16
_MEMORY, _PORTS = 1 << 64, 1 << 16  # bytes of the address spaces


def _read(address: int, nr_bytes: int) -> str:
    _require_place("", address, nr_bytes, _MEMORY)
    return f"read{_WIDTHS[nr_bytes]} {address:#x}"


def _write(address: int, nr_bytes: int, value: int) -> str:
    _require_place("", address, nr_bytes, _MEMORY)
    _require_fit(address, nr_bytes, value)
    return f"write{_WIDTHS[nr_bytes]} {address:#x} {value:#x}"


def _after_ok(text: str, answer: str) -> str:
    status, _, rest = answer.partition(" ")
    if status != "OK":
        raise HostError(f"QEMU refused {text!r}: {answer}")
    return rest


def _as_number(text: str, answer: str, nr_bytes: int) -> int:
    if _NUMBER.fullmatch(answer) and (number := int(answer, 16)) < 1 << 8 * nr_bytes:
        return number
    raise HostError(f"QEMU answered {text!r} with {answer!r}, which is no number of {nr_bytes} bytes")


def _require_place(space: str, at: int, nr_bytes: int, end: int) -> None:
    """Raise ValueError if so many bytes are not in an address space, whose end the machine would go around."""
    if not 0 <= at <= end - nr_bytes:
        raise ValueError(f"there are no {nr_bytes} bytes at {space}{at:#x}")


def _require_fit(at: int, nr_bytes: int, value: int) -> None:
    """Raise ValueError if a number has more bytes, of which the machine would take the lower ones."""
    if not 0 <= value < 1 << 8 * nr_bytes:
        raise ValueError(f"{value:#x} does not fit into {nr_bytes} bytes, at {at:#x}")
