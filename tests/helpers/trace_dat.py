"""Files of trace-cmd's, version 6, made as trace-cmd.dat.v6(5) says, with pages of the kernel's ring buffer."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

PAGE = 4096

HEADER_PAGE = b"""\
\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;
\tfield: local_t commit;\toffset:8;\tsize:8;\tsigned:1;
\tfield: int overwrite;\toffset:8;\tsize:1;\tsigned:1;
\tfield: char data;\toffset:16;\tsize:4080;\tsigned:1;
"""
HEADER_EVENT = b"""\
# compressed entry header
\ttype_len    :    5 bits
\ttime_delta  :   27 bits
\tarray       :   32 bits

\tpadding     : type == 29
\ttime_extend : type == 30
\ttime_stamp : type == 31
\tdata max type_len  == 28
"""
COMMON = """\
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;
\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

"""
C_TYPES = {"Q": "unsigned long", "q": "s64", "I": "unsigned int", "i": "int", "B": "u8"}

# The fields after the common ones, as the kernel's `format` files have them: name and type of struct. Linux 6.12.
FORMATS = {
    "mm_page_alloc": "pfn Q order I pad I gfp_flags Q migratetype i",
    "mm_page_free": "pfn Q order I",
    "mm_page_free_batched": "pfn Q",
    "mm_page_alloc_zone_locked": "pfn Q order I migratetype i percpu_refill i",
    "mm_page_pcpu_drain": "pfn Q order I migratetype i",
    "mm_page_alloc_extfrag": "pfn Q alloc_order i fallback_order i alloc_migratetype i fallback_migratetype i "
    "change_ownership i",
    "kp_bulk_alloc": "__probe_ip Q pfn Q",
    "kp_free_direct": "__probe_ip Q pfn Q order I mt i fpi I",
    "kp_isolate": "__probe_ip Q pfn Q order I",
    "kp_isolate_ret": "__probe_func Q __probe_ret_ip Q ret i",
    "kp_putback": "__probe_ip Q pfn Q order I mt i",
    "kp_steal": "__probe_ip Q pfn Q alloc_flags I start_type i whole_block B",
    "kp_move_block": "__probe_ip Q pfn Q old_mt i new_mt i",
    "kp_report_call": "__probe_ip Q nents I",
    "kp_report_call_end": "__probe_func Q __probe_ret_ip Q ret i",
    "kp_report_notify": "__probe_ip Q",
    "kp_report_pass": "__probe_ip Q",
    "kp_report_pass_end": "__probe_func Q __probe_ret_ip Q",
    "sched_wakeup": "target I",
}
IDS = {name: 1000 + number for number, name in enumerate(FORMATS)}
PRINT_ID = 5


@dataclass
class Dat:
    """What goes into a file: the pages of each CPU, and what explains them."""

    names: dict[int, str] = field(default_factory=dict)
    symbols: dict[int, str] = field(default_factory=dict)
    pages: list[list[bytes]] = field(default_factory=list)
    formats: dict[str, str] = field(default_factory=lambda: dict(FORMATS))

    def write(self, path: Path) -> Path:
        symbols = "".join(f"{at:016x} T {name}\n" for at, name in sorted(self.symbols.items())).encode()
        names = "".join(f"{pid} {name}\n" for pid, name in self.names.items()).encode()
        head = b"\x17\x08\x44tracing6\0" + bytes([0, 8]) + struct.pack("<I", PAGE)
        head += b"header_page\0" + sized(HEADER_PAGE) + b"header_event\0" + sized(HEADER_EVENT)
        head += struct.pack("<I", 1) + sized(print_format())
        head += struct.pack("<I", 1) + b"kmem\0" + struct.pack("<I", len(self.formats))
        head += b"".join(sized(format_file(name, text)) for name, text in self.formats.items())
        head += struct.pack("<I", len(symbols)) + symbols
        head += struct.pack("<I", 0) + sized(names)
        head += struct.pack("<I", len(self.pages)) + b"options  \0" + struct.pack("<H", 0) + b"flyrecord\0"
        at = -(-(len(head) + 16 * len(self.pages)) // PAGE) * PAGE
        table, body = b"", b""
        for pages in self.pages:
            table += struct.pack("<QQ", at + len(body), PAGE * len(pages))
            body += b"".join(pages)
        path.write_bytes((head + table).ljust(at, b"\0") + body)
        return path


def sized(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def print_format() -> bytes:
    fields = "\tfield:unsigned long ip;\toffset:8;\tsize:8;\tsigned:0;\n"
    fields += "\tfield:char buf[];\toffset:16;\tsize:0;\tsigned:1;\n"
    return f'name: print\nID: {PRINT_ID}\nformat:\n{COMMON}{fields}\nprint fmt: "%s", REC->buf\n'.encode()


def layout(text: str) -> list[tuple[str, str]]:
    words = text.split()
    return list(zip(words[::2], words[1::2], strict=True))


def format_file(name: str, text: str) -> bytes:
    lines, at = "", 8
    for key, kind in layout(text):
        size = struct.calcsize("<" + kind)
        lines += f"\tfield:{C_TYPES[kind]} {key};\toffset:{at};\tsize:{size};\tsigned:{int(kind.islower())};\n"
        at += size
    first = layout(text)[0][0]
    return f'name: {name}\nID: {IDS[name]}\nformat:\n{COMMON}{lines}\nprint fmt: "%lu", REC->{first}\n'.encode()


def event(name: str, pid: int, **fields: int) -> bytes:
    """The data of an event; what is not given is 0."""
    data = struct.pack("<HBBi", IDS[name], 0, 0, pid)
    for key, kind in layout(FORMATS[name]):
        data += struct.pack("<" + kind, fields.pop(key, 0))
    assert not fields, fields
    return data


def mark(pid: int, text: str) -> bytes:
    return struct.pack("<HBBiQ", PRINT_ID, 0, 0, pid, 0) + text.encode() + b"\n\0"


def page(time: int, events: Iterable[tuple[int, bytes]], lost: int = 0) -> bytes:
    """A page of the ring buffer: events with their times, the first at `time` or later.

    `lost` says how many events are missing before it, -1 for an unknown number.
    """
    data, now = b"", time
    for at, each in events:
        delta, now = at - now, at
        if delta >> 27:
            data += struct.pack("<II", 30 | (delta & (1 << 27) - 1) << 5, delta >> 27)
            delta = 0
        each = each.ljust(-(-len(each) // 4) * 4, b"\0")
        if len(each) <= 4 * 28:
            data += struct.pack("<I", len(each) // 4 | delta << 5) + each
        else:
            data += struct.pack("<II", delta << 5, len(each) + 4) + each
    flags, count = 0, b""
    if lost:
        flags = 1 << 31
        if lost > 0:
            flags |= 1 << 30
            count = struct.pack("<Q", lost)
    assert len(data) + len(count) <= PAGE - 16
    return (struct.pack("<QQ", time, len(data) | flags) + data + count).ljust(PAGE, b"\0")
