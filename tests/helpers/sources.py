"""The source files of a package, Python and Cython alike: their code without prose, how long their functions are."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PYTHON = (".py", ".pyi")
CYTHON = (".pyx", ".pxd")

_LITERAL = re.compile(r"[rRbBuUfF]{0,2}(\"\"\"|'''|\"|')(?:\\.|.)*?\1|#[^\n]*", re.DOTALL)
_FUNCTION = re.compile(
    r"(?P<indent> *)(?:cdef|cpdef|def|async def) +(?!(?:class|struct|enum|union|extern|packed)\b)"
    r"(?:\([^)]*\) *)?[^(=]*?(?P<name>\w+) *\("
)


@dataclass(frozen=True)
class Function:
    """A function. Its lines are counted from `def` to its last one, without the docstring."""

    line: int
    name: str
    nr_lines: int


def source_files(package: Path) -> list[Path]:
    """Return every source file below a package, but for those that Cython has generated."""
    return sorted(path for path in package.rglob("*") if path.suffix in PYTHON + CYTHON)


def without_prose(text: str, *, strings: bool = True) -> str:
    """Blank comments and docstrings, and on demand all other strings, too. Lines keep their numbers."""
    code, end = "", 0
    for start, literal, kind in _literals(text):
        keep = strings and kind == "string"
        code += text[end:start] + (literal if keep else re.sub(r"[^\n]", " ", literal))
        end = start + len(literal)
    return code + text[end:]


def _literals(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield where each literal begins, its text, and whether it is a "comment", a "docstring" or another "string".

    A docstring is a string that begins a statement. The C code below `cdef extern from` is a string, and no docstring.
    """
    end, depth = 0, 0
    for match in _LITERAL.finditer(text):
        depth += _depth(text[end : match.start()])
        end = match.end()
        *above, line = text[: match.start()].rstrip(" ").split("\n")
        in_c = "".join(above[-1:]).lstrip().startswith("cdef extern from")
        kind = "comment" if match[0].startswith("#") else "string" if line or depth or in_c else "docstring"
        yield match.start(), match[0], kind


def functions_of(path: Path) -> list[Function]:
    """Return every function of a source file."""
    text = path.read_text()
    return list(_python_functions(text) if path.suffix in PYTHON else _cython_functions(text))


def _python_functions(text: str) -> Iterator[Function]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            documented = ast.get_docstring(node, clean=False) is not None
            docstring = _nr_lines(node.body[0]) if documented else 0
            yield Function(node.lineno, node.name, _nr_lines(node) - docstring)


def _nr_lines(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _cython_functions(text: str) -> Iterator[Function]:
    """By indentation: a function's last line is the last one that is further in than its `def`."""
    bare = without_prose(text, strings=False).split("\n")
    docstring = {
        number
        for start, literal, kind in _literals(text)
        if kind == "docstring"
        for number in range(text.count("\n", 0, start), text.count("\n", 0, start + len(literal)) + 1)
    }
    for first, line in enumerate(bare):
        match = _FUNCTION.match(line)
        if match is None:
            continue
        last = first
        while _depth("".join(bare[first : last + 1])) > 0:
            last += 1
        if not bare[last].rstrip().endswith(":"):
            continue  # a declaration
        for number in range(last + 1, len(bare)):
            if not bare[number].strip():
                continue
            if len(bare[number]) - len(bare[number].lstrip()) <= len(match["indent"]):
                break
            last = number
        yield Function(first + 1, match["name"], len(set(range(first, last + 1)) - docstring))


def _depth(code: str) -> int:
    return sum(code.count(bracket) for bracket in "([{") - sum(code.count(bracket) for bracket in ")]}")
