"""Readers of the repository's own source, for the tests that measure it: modules and their imports, functions, comments, names."""

import ast
import functools
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("fastssl", "benchmarks", "tests", "examples")
CPP = (".h", ".inl", ".c", ".cpp", ".cu", ".cuh")
#: Files that name what does not exist.
ABSENT = ("house_exceptions.py", "test_names.py")
Function = ast.FunctionDef | ast.AsyncFunctionDef


@functools.cache
def files(*endings: str, under: tuple[str, ...] = (*PACKAGES, "csrc", "docs", "requirements")) -> list[Path]:
    """Files of the repository with one of these endings, and those in its root, relative to it and sorted."""
    found = [path for folder in under for path in (ROOT / folder).rglob("*") if path.suffix in endings]
    found += [path for path in ROOT.iterdir() if path.suffix in endings]
    return sorted(path.relative_to(ROOT) for path in found if "results" not in path.parts and path.is_file())


@functools.cache
def text(path: Path) -> str:
    return (ROOT / path).read_text()


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(text(path))


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(tree(path)))


# --- imports ------------------------------------------------------------------------------------------------------------------


@functools.cache
def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of these packages."""
    found = {}
    for path in files(".py", under=PACKAGES):
        parts = path.with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str) -> set[str]:
    """Modules of this repository that a module imports, also inside its functions. ``from a import b`` is an import of the module
    a.b where there is one, and of a otherwise; the packages above a module are not counted."""
    known, path = modules(), modules()[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names}
    return {each for each in found if each in known} - {name}


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(edges[name]):
            if other not in index:
                visit(other)
            if other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == index[name]:
            part = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(part) > 1:
                found.append(sorted(part))

    for name in edges:
        if name not in index:
            visit(name)
    return found


# --- functions ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """A function of Python or C++: where it is, its lines without docstring, its parameters without self."""

    name: str  # "fastssl/info.py: outer.inner"
    lines: int
    parameters: int
    kernel: bool  # decorated with a jit of Triton or Gluon


def _measure(path: Path, node: Function, within: list[str], method: bool) -> Measured:
    docstring = node.body[0] if ast.get_docstring(node, clean=False) is not None else None
    lines = node.end_lineno - node.lineno + 1 - (docstring.end_lineno - docstring.lineno + 1 if docstring else 0)
    static = any(ast.unparse(each) == "staticmethod" for each in node.decorator_list)
    count = len(node.args.posonlyargs) + len(node.args.args) + len(node.args.kwonlyargs) - (method and not static)
    kernel = any(re.match(r"(triton|gluon)\.jit\b", ast.unparse(each)) for each in node.decorator_list)
    return Measured(f"{path}: {'.'.join([*within, node.name])}", lines, count, kernel)


def functions(path: Path) -> Iterator[Measured]:
    def walk(node: ast.AST, within: list[str], in_class: bool) -> Iterator[Measured]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, Function):
                yield _measure(path, child, within, in_class)
            named = isinstance(child, (Function, ast.ClassDef))
            yield from walk(child, [*within, child.name] if named else within, isinstance(child, ast.ClassDef))

    yield from walk(tree(path), [], False)


_NO_FUNCTION = re.compile(r"(namespace|struct|class|enum|union|extern|typedef|using|constexpr \w+ \w+\[|static const|const)\b")


def cpp_functions(path: Path) -> Iterator[Measured]:
    """Functions of C++ as clang-format leaves them: from a name and "(" in the first column, through a line that ends in "{", to a
    "}" in the first column."""
    start = body = None
    for number, line in enumerate(text(path).splitlines()):
        if start is None and re.match(r"[A-Za-z_].*\(", line) and not _NO_FUNCTION.match(line):
            start = number, line.split("(")[0].split()[-1]
        if start and not body:
            body = line.endswith("{")
            start = None if line.endswith((";", "}")) else start
        elif start and line.startswith("}"):
            yield Measured(f"{path}: {start[1]}", number - start[0] + 1, 0, False)
            start = body = None


# --- what people read ---------------------------------------------------------------------------------------------------------


def _docstrings(path: Path) -> Iterator[ast.Constant]:
    for each in nodes(path):
        if isinstance(each, (ast.Module, ast.ClassDef, Function)) and ast.get_docstring(each, clean=False) is not None:
            yield each.body[0].value


@functools.cache
def prose(path: Path) -> list[tuple[int, str]]:
    """(line, text) of each comment and docstring of a program, and of each paragraph of a page without its blocks of code."""
    whole = text(path)
    if path.suffix == ".md":
        without = re.sub(r"^```.*?^```", lambda block: "\n" * block[0].count("\n"), whole, flags=re.S | re.M)
        return [(number, line) for number, line in enumerate(without.splitlines(), 1) if line.strip()]
    if path.suffix == ".py":
        found = [(each.lineno, each.value) for each in _docstrings(path)]
        tokens = tokenize.generate_tokens(io.StringIO(whole).readline)
        return found + [(each.start[0], each.string) for each in tokens if each.type == tokenize.COMMENT]
    comments = re.finditer(r"//[^\n]*(?:\n\s*//[^\n]*)*|/\*.*?\*/", whole, re.S)
    return [(whole.count("\n", 0, each.start()) + 1, each[0]) for each in comments]


@functools.cache
def strings(path: Path) -> list[tuple[int, str]]:
    """(line, text) of each string of a Python file that is no docstring, which a person may read as an error or a help."""
    if path.name in ABSENT:
        return []
    skipped = {id(each) for each in _docstrings(path)}
    every = (each for each in nodes(path) if isinstance(each, ast.Constant) and isinstance(each.value, str))
    return [(each.lineno, each.value) for each in every if id(each) not in skipped]


@functools.cache
def code_words() -> frozenset[str]:
    """Every identifier, and every word of a string, that some code of the repository holds: comments, docstrings and pages do not
    count."""
    found = {part for name in modules() for part in name.split(".")}
    for path in files(".py"):
        for node in nodes(path):
            if isinstance(node, ast.arg | ast.keyword) and node.arg:
                found.add(node.arg)
            else:
                found |= {
                    value
                    for key in ("id", "attr", "name", "asname", "module")
                    if isinstance(value := getattr(node, key, None), str)
                }
        for _, string in strings(path):
            found |= set(re.findall(r"\w+", string))
    for path in files(*CPP):
        found |= set(re.findall(r"\w+", re.sub(r"//[^\n]*|/\*.*?\*/", "", text(path), flags=re.S)))
    for name in ("Makefile", "pyproject.toml", ".ci/run", *map(str, files(".txt", under=("requirements",)))):
        found |= set(re.findall(r"\w+", text(Path(name))))
    return frozenset(word for each in found for word in each.split("."))


def judge(found: dict[str, object], excused: dict[str, str]) -> None:
    """Nothing is found that is not excused, and no excuse is left of what is gone."""
    assert {name: value for name, value in found.items() if name not in excused} == {}
    assert [name for name in excused if name not in found] == [], "take it out of house_exceptions.py"
