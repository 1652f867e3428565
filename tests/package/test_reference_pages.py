"""The API reference (docs/api) has each public name exactly once."""

import ast
import re
from collections import defaultdict

import pytest

from tests.support.public_names import ROOT, all_of, home, public_modules, public_names

DIRECTIVE = re.compile(r"^::: (\S+)$", re.MULTILINE)
PAGES = sorted((ROOT / "docs/api").glob("*.md"))


def described() -> dict[str, list[str]]:
    """Where a name is defined -> the pages that describe it, once for each time."""
    pages = defaultdict(list)
    for page in PAGES:
        for name in DIRECTIVE.findall(page.read_text()):
            module, _, last = name.rpartition(".")
            found = home(module, last)
            assert found, f"{page.name}: {name} is no function and no class of fastssl"
            pages[found[0]].append(page.name)
    return pages


def test_the_api_reference_describes_each_public_name_once():
    pages = described()
    public = public_names()
    missing = sorted(name for name, at in public.items() if at not in pages)
    assert not missing, f"no page in docs/api describes {missing}"
    twice = {name: where for name, where in pages.items() if len(where) > 1}
    assert not twice, f"described more than once: {twice}"


@pytest.mark.parametrize("module", [name for name in public_modules() if ".compat." in name])
def test_the_page_of_the_drop_ins_names_each_of_them(module):
    """A drop-in that is a function of fastssl under another name is described with that function and only named here."""
    sections = (ROOT / "docs/api/compat.md").read_text().split("\n## ")
    section = next(text for text in sections if f"`{module}`" in text.partition("\n")[0])
    absent = [name for name in all_of(module) if f"{module}.{name}" not in section and f"`{name}`" not in section]
    assert not absent, f"docs/api/compat.md does not name {absent} of {module}"


#: Their docstrings state shapes in a line: methods for classes of other libraries, and classes that only a function makes.
SHORT = (
    "fastssl.compat.mae.",
    "fastssl.compat.transformers.",
    "fastssl.compat.flag_embedding.",
    "fastssl.compat.ms_swift.",
    "fastssl.compat.tevatron.",
    "fastssl.compat.lightly.vit_preprocess",
    "fastssl.graphs.GraphedStep",
)
SHORT += ("fastssl.patch.Patch",)


def undescribed(node: ast.AST) -> list[str]:
    """The arguments of a function, or of a class's constructor, that the docstring's ``Args:`` and ``Keyword Args:`` leave out."""
    methods = {child.name: child for child in node.body if isinstance(child, ast.FunctionDef)}
    call = node if isinstance(node, ast.FunctionDef) else methods.get("__init__")
    if call is None:
        return []
    section = re.search(r"^Args:\n((?:(?: .*)?\n?)*)", ast.get_docstring(node) or "", re.MULTILINE)
    items = re.findall(r"^ {4}([*\w, ]+):", section[1], re.MULTILINE) if section else []
    described = {name.strip(" *") for item in items for name in item.split(",")}
    arguments = call.args.posonlyargs + call.args.args + call.args.kwonlyargs
    return [argument.arg for argument in arguments if argument.arg not in {"self", *described}]


def test_the_docstring_of_a_public_name_describes_each_argument():
    found = {name: undescribed(home(*at.rsplit(".", 1))[1]) for name, at in public_names().items() if not name.startswith(SHORT)}
    assert {name: arguments for name, arguments in found.items() if arguments} == {}
