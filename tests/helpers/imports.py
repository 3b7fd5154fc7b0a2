"""Every import and cimport of a package, and the file of it that each one means."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sources import CYTHON, PYTHON, source_files, without_prose

_FROM = re.compile(r"\s*from\s+(?P<module>[\w.]+)\s+c?import\s+(?P<names>.+)", re.DOTALL)
_PLAIN = re.compile(r"\s*c?import\s+(?P<names>.+)", re.DOTALL)


@dataclass(frozen=True)
class Import:
    """An import of one file by another. `.py`, `.pyi`, `.pyx` and `.pxd` of one stem are one module."""

    path: str
    line: int
    text: str
    function: str  # where it stands, as "Class.method"; empty at the top level
    target: str

    @property
    def module(self) -> str:
        """The module that imports, by its path without suffix, as `target` is."""
        return self.path.rpartition(".")[0]

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


def imports_of(root: Path, *tops: str) -> list[Import]:
    """Return the imports of these packages and modules by each other, also in functions and under TYPE_CHECKING.

    Raises
    ------
    LookupError
        If there is no file that an import could mean.
    """
    paths = [path for top in tops for path in [*root.glob(f"{top}.py"), *source_files(root / top)]]
    return [each for path in paths for each in _imports_of_file(root, path, tops)]


def _imports_of_file(root: Path, path: Path, tops: Iterable[str]) -> Iterator[Import]:
    text, name = path.read_text(), path.relative_to(root).as_posix()
    statements = _python_imports(ast.parse(text)) if path.suffix in PYTHON else _cython_imports(text)
    for line, function, module, names, written in statements:
        absolute = _absolute(module, name)
        if absolute.split(".")[0] not in tops:
            continue
        meant = [f"{absolute}.{each}" for each in names] or [absolute]
        for target in dict.fromkeys(_file(root, each) or _file(root, absolute) for each in meant):
            if target is None:
                raise LookupError(f"{name}:{line}: no file for {written}")
            yield Import(name, line, written, function, target)


def circles(imports: Iterable[Import]) -> list[list[Import]]:
    """Return the imports within each set of modules that all lead to each other."""
    graph: dict[str, set[str]] = {}
    imports = list(imports)
    for each in imports:
        graph.setdefault(each.module, set()).add(each.target)
        graph.setdefault(each.target, set())
    reached = {module: _reached(graph, module) for module in graph}
    sets = {frozenset(other for other in reached[module] if module in reached[other]) for module in graph}
    return [
        [each for each in imports if {each.module, each.target} <= modules and each.module != each.target]
        for modules in sorted(sets, key=sorted)
        if len(modules) > 1
    ]


def _reached(graph: dict[str, set[str]], start: str) -> set[str]:
    found, ahead = set[str](), [start]
    while ahead:
        new = graph[ahead.pop()] - found
        found |= new
        ahead += new
    return found


Statement = tuple[int, str, str, list[str], str]  # line, function, module, names imported from it, text


def _python_imports(tree: ast.AST, function: str = "") -> Iterator[Statement]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, function, alias.name, [], ast.unparse(node)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield node.lineno, function, module, [alias.name for alias in node.names], ast.unparse(node)
        else:
            inside = function
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inside = f"{function}.{node.name}".lstrip(".")
            yield from _python_imports(node, inside)


def _cython_imports(text: str) -> Iterator[Statement]:
    """Read lines that begin with `from`, `import` or `cimport`; what stands in brackets goes on to their end."""
    code = without_prose(text, strings=False)
    for match in re.finditer(r"^ *(?:from|c?import) (?:[^\n(\\]|\([^)]*\)|\\\n)+", code, re.MULTILINE):
        line = code.count("\n", 0, match.start()) + 1
        written = re.sub(r"[\s\\]+", " ", match[0]).strip()
        if imported := _FROM.match(written):
            yield line, "", imported["module"], _names(imported["names"]), written
        elif imported := _PLAIN.match(written):
            for name in _names(imported["names"]):
                yield line, "", name, [], written


def _names(listed: str) -> list[str]:
    return [name.split()[0] for name in listed.strip("() ").split(",") if name.strip()]


def _absolute(module: str, path: str) -> str:
    level = len(module) - len(module.lstrip("."))
    if level == 0:
        return module
    return ".".join([*path.split("/")[:-level], module[level:]]).rstrip(".")


def _file(root: Path, module: str) -> str | None:
    for stem in (module.replace(".", "/"), f"{module.replace('.', '/')}/__init__"):
        if any((root / f"{stem}{suffix}").is_file() for suffix in PYTHON + CYTHON):
            return stem
    return None
