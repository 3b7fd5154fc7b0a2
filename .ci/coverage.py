"""Add up what gcov says of each module, and print it by file of the source: ``coverage.py FOLDER_OF_OBJECTS``."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

HERE = Path(__file__).parent
# What Cython counts its own wrappers on: comments, decorators, declarations, first and last lines of a signature.
NO_CODE = re.compile(r"""$|#|@|\"\"\"|def |cdef [^=(]*$|cdef .*:$|(?!and |or )[^()]*\):$""")
SCOPE = re.compile(r"(?:def|cp?def|class)\b[^=(:]*?(\w+) ?[(:]")
ENTRY = re.compile(r"(.*?)(?: x(?:(\d+)-)?(\d+))? \| ([^|]+)")
# How often each line has been run, in whichever modules it was compiled into: inline functions are in several.
counts: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
for data in Path(sys.argv[1]).resolve().rglob("*.gcda"):
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["gcov", "--json-format", data], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        for report in Path(folder).glob("*.gz"):
            for file in json.loads(gzip.decompress(report.read_bytes()))["files"]:
                if Path(file["file"]).suffix in (".pyx", ".pxd") and "pagehint/" in file["file"]:
                    for line in file["lines"]:
                        if line.get("function_name", "").startswith("__Pyx_"):
                            continue  # Cython's own, and the numbers of its lines are those of another file
                        counts[file["file"].rpartition("pagehint/")[2]][line["line_number"]] += line["count"]


def scope(source: list[str], number: int) -> str:
    """Return what a line is in, as Class.function, by indentation."""
    names = []
    depth = len(source[number - 1]) - len(source[number - 1].lstrip())
    for line in reversed(source[: number - 1]):
        text = line.lstrip()
        found = SCOPE.match(text)
        if (found or text.endswith(":")) and len(line) - len(text) < depth:
            depth = len(line) - len(text)
            names += [found[1]] if found else []
    return ".".join(reversed(names))


missed, present = [], set()
total = reached = 0
for name, lines in sorted(counts.items()):
    source = (HERE.parent / "pagehint" / name).read_text().splitlines()
    code = [number for number in sorted(lines) if not NO_CODE.match(source[number - 1].lstrip())]
    if not code:
        continue
    for number in code:
        where = ": ".join(filter(None, (name, scope(source, number), source[number - 1].strip())))
        present.add(where)
        if not lines[number]:
            missed.append((where, number))
    hit = sum(lines[number] > 0 for number in code)
    print(f"{name:28} {hit:5} of {len(code):5} lines {hit / len(code):7.1%}")
    total += len(code)
    reached += hit
print(f"{'all':28} {reached:5} of {total:5} lines {reached / total:7.1%}")

# How many lines each entry of `unreached` may and must excuse: `x2` two, `x0-2` up to two, else one.
wrong, reasons = [], {}
times = Counter(where for where, _ in missed)
for entry in (HERE / "unreached").read_text().splitlines():
    if entry and not entry.startswith("#"):
        where, least, most, why = ENTRY.fullmatch(entry).groups()
        reasons[where] = why
        if where not in present:
            wrong.append(f"no such line with code of its own: {entry}")
        elif not int(least or most or 1) <= times[where] <= int(most or 1):
            wrong.append(f"{times[where]} lines are not reached: {entry}")

print("\nnot reached:")
for where, number in missed:
    name, _, rest = where.partition(": ")
    print(f"{name}:{number}: {rest}    [{reasons.get(where, 'NO REASON GIVEN')}]")
wrong += [f"no reason is given: {where}" for where in times if where not in reasons]
if wrong:
    sys.exit("\n.ci/unreached is wrong:\n" + "\n".join(wrong))
