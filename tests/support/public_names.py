"""The public names of fastssl and where each is defined, read from the sources without importing anything."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODULES = ("functional", "loss", "momentum", "optim", "masking", "methods", "distributed", "graphs", "loading", "patch")


@cache
def source(module: str) -> ast.Module | None:
    """The parsed source of ``fastssl.some.module``; None where there is no such module."""
    place = ROOT.joinpath(*module.split("."))
    for path in (place / "__init__.py", place.with_suffix(".py")):
        if path.is_file():
            return ast.parse(path.read_text(), path.name)
    return None


def is_package(module: str) -> bool:
    return ROOT.joinpath(*module.split("."), "__init__.py").is_file()


def public_modules() -> list[str]:
    compat = sorted(path.stem for path in (ROOT / "fastssl/compat").glob("[a-z]*.py"))
    return [f"fastssl.{name}" for name in MODULES] + [f"fastssl.compat.{name}" for name in compat]


def all_of(module: str) -> list[str]:
    """What a module lists in ``__all__``."""
    for node in source(module).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "__all__":
            return ast.literal_eval(node.value)
    raise LookupError(f"{module} has no __all__")


def home(module: str, name: str) -> tuple[str, ast.AST] | None:
    """The dotted name under which ``module.name`` is defined, through imports, and the node that defines it."""
    for node in source(module).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return f"{module}.{name}", node
        if isinstance(node, ast.ImportFrom):
            for bound in node.names:
                if (bound.asname or bound.name) == name:
                    return home(_imported(module, node), bound.name)
    return None


def _imported(module: str, node: ast.ImportFrom) -> str:
    """The module that ``from ... import`` names."""
    if not node.level:
        return node.module
    base = module.split(".")
    base = base[: len(base) - node.level + is_package(module)]
    return ".".join(base + ([node.module] if node.module else []))


def public_names() -> dict[str, str]:
    """Public dotted name -> where it is defined, for each name in an ``__all__``."""
    return {f"{module}.{name}": home(module, name)[0] for module in public_modules() for name in all_of(module)}
