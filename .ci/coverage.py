"""Add up what gcov says of each module, and print it by file of the source: ``coverage.py FOLDER_OF_OBJECTS``."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent
# What Cython counts its own wrappers on: comments, decorators, declarations, first and last lines of a signature.
NO_CODE = re.compile(r"""#|@|\"\"\"|def |cdef [^=(]*$|cdef .*:$|[^()]*\):$""")
# How often each line has been run, in whichever modules it was compiled into: inline functions are in several.
counts: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
for data in Path(sys.argv[1]).resolve().rglob("*.gcda"):
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["gcov", "--json-format", data], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        for report in Path(folder).glob("*.gz"):
            for file in json.loads(gzip.decompress(report.read_bytes()))["files"]:
                if Path(file["file"]).suffix in (".pyx", ".pxd") and "pagehint/" in file["file"]:
                    for line in file["lines"]:
                        counts[Path(file["file"]).name][line["line_number"]] += line["count"]

excused = {}
for entry in (HERE / "unreached").read_text().splitlines():
    if entry and not entry.startswith("#"):
        where, _, why = entry.rpartition(" | ")
        excused[where.strip()] = why.strip()

missed, used = [], set()
for name, lines in sorted(counts.items()):
    source = next((HERE.parent / "pagehint").rglob(name)).read_text().splitlines()
    not_reached = []
    for number in sorted(line for line, count in lines.items() if not count):
        text = source[number - 1].strip() if number <= len(source) else ""
        if text and not NO_CODE.match(text):
            not_reached.append((number, text))
    print(
        f"{name:20} {len(lines) - len(not_reached):5} of {len(lines):5} lines {1 - len(not_reached) / len(lines):7.1%}"
    )
    missed += [(name, number, text) for number, text in not_reached]

print("\nnot reached:")
unknown = 0
for name, number, text in missed:
    why = excused.get(f"{name}: {text}")
    used.add(f"{name}: {text}")
    unknown += why is None
    print(f"{name}:{number}: {text}    [{why or 'NO REASON GIVEN'}]")
for where in excused.keys() - used:
    print(f"reached after all, or gone: {where}")
if unknown:
    sys.exit(f"{unknown} lines are not reached, and .ci/unreached does not say why")
