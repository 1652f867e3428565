"""The examples in the docstrings of public functions and classes run and print what they say; each public name has one."""

import ast
import doctest
import re

import pytest
import torch

from tests.support.public_names import home, public_names, source

#: Public names without an example, and why.
WITHOUT = {
    "fastssl.compat.transformers": "methods of the library's classes: docs/compat.md shows them under fastssl.patch",
    "fastssl.compat.flag_embedding": "methods of the class AbsEmbedderModel: tests/compat/test_retrieval.py calls them",
    "fastssl.compat.ms_swift": "a method of the class InfonceLoss: tests/compat/test_retrieval.py calls it",
    "fastssl.compat.tevatron": "a method of the class EncoderModel: tests/compat/test_retrieval.py calls it",
    "fastssl.compat.mae": "methods of the class MaskedAutoencoderViT: docs/compat.md shows them under fastssl.patch",
    "fastssl.compat.lightly.vit_preprocess": "a method of MaskedVisionTransformerTIMM, which needs lightly and timm",
}


def definitions() -> dict[str, tuple[str, ast.AST]]:
    """Each public name -> where it is defined, and the node there; of several names of one thing the first alone."""
    found = {}
    for name, at in public_names().items():
        if at not in [where for where, _ in found.values()]:
            found[name] = home(*name.rsplit(".", 1))
    return found


def docstrings(name: str, node: ast.AST) -> dict[str, str]:
    """The docstrings of a function, or of a class and its methods, that have an example."""
    inner = (
        [child for child in getattr(node, "body", ()) if isinstance(child, ast.FunctionDef)]
        if isinstance(node, ast.ClassDef)
        else []
    )
    found = {name: ast.get_docstring(node)} | {f"{name}.{child.name}": ast.get_docstring(child) for child in inner}
    return {at: text for at, text in found.items() if text and ">>>" in text}


EXAMPLES = {at: text for name, node in definitions().values() for at, text in docstrings(name, node).items()}


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_the_example_prints_what_it_says(name):
    """It runs with the names of the module that it stands in, as ``python -m doctest`` does it, and with torch."""
    parts = name.split(".")
    module = next(".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1) if source(".".join(parts[:n])))
    names = {"torch": torch} | vars(pytest.importorskip(module, exc_type=ImportError))
    test = doctest.DocTestParser().get_doctest(EXAMPLES[name], names, name, module, 0)
    out = []
    torch.manual_seed(0)
    failed = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=out.append).failed
    assert not failed, "".join(out)


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_the_example_stands_under_the_heading_that_the_site_knows(name):
    """``>>>`` outside the section ``Examples:`` becomes a quotation on the site."""
    heading = None
    for line in EXAMPLES[name].split("\n"):
        if re.match(r"\S", line):
            heading = line
        assert ">>>" not in line or heading == "Examples:", f"{name}: {line.strip()!r} stands under {heading!r}, not 'Examples:'"


def test_every_public_name_has_an_example():
    missing = {name for name, (at, node) in definitions().items() if not docstrings(at, node)}
    missing = {name for name in missing if not any(name == known or name.startswith(known + ".") for known in WITHOUT)}
    assert not missing, f"no example (Examples: with >>>) in the docstring of {sorted(missing)}"
