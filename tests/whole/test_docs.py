"""The documents: each link leads somewhere, each table is whole, each file that they name is there."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import started

from pagehint.cli.command_line import make_parser

ROOT = Path(__file__).parents[2]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "benchmarks/README.md"]
DOCUMENTS += [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").glob("*.md"))]

LINK = re.compile(r"\]\((?!\w+://)([^)\s]+)\)")
CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
PLACE = re.compile(r"[\w.-]+(?:/[\w.-]+)+/?|[\w.-]+/|[\w-]+\.(?:pyx|pxd|py|md|pml)")
BAR = re.compile(r"(?<!\\)\|")
RULE = re.compile(r"\|(?: *:?-+:? *\|)+")
GENERATED = {"build/"}


# ---- the rules; each returns what breaks it


def prose(text: str) -> str:
    """Blank fenced blocks; lines keep their numbers."""
    return re.sub(r"^```.*?^```$", lambda block: "\n" * block[0].count("\n"), text, flags=re.MULTILINE | re.DOTALL)


def numbered(pattern: re.Pattern[str], text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(prose(text).splitlines(), 1):
        for match in pattern.finditer(line):
            yield number, match[1]


def anchors(text: str) -> set[str]:
    """The anchors of the headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def dead_links(text: str, folder: Path) -> list[str]:
    """Links from a document in this folder to files and headings that are not there."""
    dead = []
    for number, link in numbered(LINK, text):
        name, _, anchor = link.partition("#")
        there = (folder / name).exists()
        if there and anchor:
            there = anchor in anchors((folder / name).read_text() if name else text)
        if not there:
            dead.append(f"{number}: {link}")
    return dead


def broken_tables(text: str) -> list[str]:
    """Rows with another number of cells than their header; a line of a table that has no header."""
    broken, header = [], 0
    lines = prose(text).splitlines()
    for number, line in enumerate(lines, 1):
        if not line.startswith("|"):
            header = 0
            continue
        cells = len(BAR.split(line.rstrip())) - 2
        if not header:
            header = cells if RULE.fullmatch("".join(lines[number : number + 1]).rstrip()) else -1
        if cells != header or not line.rstrip().endswith("|"):
            broken.append(f"{number}: {line}")
    return broken


def missing_files(text: str, folder: Path, root: Path) -> list[str]:
    """Files and folders that are named in backticks, and are not there. A bare name of a file may be in any folder."""
    missing = []
    for number, name in numbered(CODE, text):
        if not PLACE.fullmatch(name) or name in GENERATED:
            continue
        there = any((place / name).exists() for place in (root, root / "pagehint", root / "tests", folder))
        if not (there or ("/" not in name and any(root.glob(f"*/**/{name}")))):
            missing.append(f"{number}: {name}")
    return missing


def first_block(text: str) -> list[str]:
    return text.split("```")[1].splitlines()[1:]


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language, each a piece of text."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run(text: str, folder: Path) -> str:
    """Run a document's commands in a folder with the tests' data, then its Python; return all that was printed.

    What takes root, and what installs, is not run; commands of ours with root have to be ones that there are.
    """
    (folder / "tests").symlink_to(ROOT / "tests")
    commands = [line for block in blocks(text, "sh") for line in block.splitlines()]
    for line in commands:
        if line.startswith("sudo pagehint "):
            make_parser().parse_args(line.split()[2:])
    shell = [f'pagehint() {{ "{sys.executable}" -m pagehint "$@"; }}']
    shell += [line for line in commands if not line.startswith(("sudo ", "pip "))]
    (folder / "page.py").write_text("\n\n".join(blocks(text, "python")))
    printed = []
    for command in (["bash", "-euc", "\n".join(shell)], [sys.executable, "page.py"]):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        printed.append(done.stdout)
    return "".join(printed)


# ---- the rules, kept


def document(name: str) -> str:
    if not (ROOT / ".ci").exists():
        pytest.skip("the documents and what they name are whole in the repository only, and this is a copy of a part")
    return (ROOT / name).read_text()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_documents(name: str) -> None:
    text = document(name)
    folder = (ROOT / name).parent
    assert dead_links(text, folder) == []
    assert broken_tables(text) == []
    assert missing_files(text, folder, ROOT) == []


def test_the_first_block_of_the_readme_is_two_commands() -> None:
    assert len(first_block(document("README.md"))) == 2


def test_the_page_on_comparing_policies_runs_and_prints_what_it_says(tmp_path: Path) -> None:
    text = document("docs/compare-policies.md")
    printed = run(text, tmp_path)
    shown = blocks(text, "text")
    assert len(shown) > 5
    assert [block for block in shown if block not in printed or len(block) < 20] == [], printed


def test_the_service_that_keeps_its_memory_runs(tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(blocks(document("docs/services.md"), "python")[0])
    done = started.run("--malloc", tmp_path / "service.py", 2, "owners")
    assert (done.stderr, done.returncode) == ("", 0)
    said = [line.partition(":")[0] for line in done.stdout.splitlines() if "MiB, at most" in line]
    assert (said[0], said[1].partition(" in ")[0], *said[2:]) == (
        "ready",
        "2 requests",
        "five seconds later",
        "released",
    )


# ---- each rule, broken once


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/a.md").write_text("# How `x` is done, now\n\n```\n# no heading\n```\n")
    right = "[a](docs/a.md) [b](docs/a.md#how-x-is-done-now) [c](https://example.org/d) [e](#top)\n# Top\n"
    assert dead_links(right + "```\n[f](f)\n```\n", tmp_path) == []
    wrong = "\n[a](a.md) [b](docs/a.md#no-heading) [c](#how-x-is-done-now)"
    assert dead_links(wrong, tmp_path) == ["2: a.md", "2: docs/a.md#no-heading", "2: #how-x-is-done-now"]


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("| a | b |\n|---|--:|\n| `c` \\| d | e |\n", []),
        ("```\n| a |\n```\n", []),
        ("| a | b |\n|---|---|\n| c |\n", ["3: | c |"]),
        ("| a | b |\n|---|---|\n| c | d,\ne |\n", ["3: | c | d,"]),
        ("| a | b |\n| c | d |\n", ["1: | a | b |", "2: | c | d |"]),
        ("| a | b |\n|---|\n| c | d |\n", ["2: |---|"]),
    ],
    ids=["whole", "in a block", "a cell too few", "wrapped", "no rule", "a short rule"],
)
def test_a_broken_table_is_found(text: str, broken: list[str]) -> None:
    assert broken_tables(text) == broken


def test_a_missing_file_is_found(tmp_path: Path) -> None:
    for name in ("pagehint/zone/leaf.pxd", "tests/zone/test_leaf.py", "docs/plots/a.png", ".ci/run"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    right = (
        "`zone/leaf.pxd` `pagehint/zone/` `leaf.pxd` `zone/test_leaf.py` `.ci/run` `build/` `.pxd` `a / b` `f(x).py`"
    )
    assert missing_files(right, tmp_path / "docs", tmp_path) == []
    wrong = "`zone/leaf.pyx` `run.pxd`\n`.ci/walk` `attic/`"
    assert missing_files(wrong, tmp_path / "docs", tmp_path) == [
        "1: zone/leaf.pyx",
        "1: run.pxd",
        "2: .ci/walk",
        "2: attic/",
    ]


def test_the_first_block_is_found() -> None:
    assert first_block("# A\n\n```sh\none\ntwo\nthree\n```\n\n```\nfour\n```\n") == ["one", "two", "three"]
