"""The house rules that can be measured: no import circle, short files and functions, few parameters, layers that look one way."""

import functools
from pathlib import Path

from tests.package import house_exceptions as exceptions
from tests.support import house
from tests.support.house import judge

FILE_LINES, METHOD_LINES, FUNCTION_LINES, PARAMETERS = 400, 150, 60, 12
PYTHON = [path for path in house.files(".py") if path.name != "house_exceptions.py"]
#: (a package, the packages that it may not know)
LAYERS = [
    ("benchmarks.core", ("benchmarks.tune", "benchmarks.gpu", "benchmarks.steps", "benchmarks.report")),
    ("fastssl", ("tests", "examples")),
    ("benchmarks", ("tests", "examples")),
    ("fastssl.loss", ("fastssl.momentum", "fastssl.optim", "fastssl.methods", "fastssl.train", "fastssl.compat")),
    ("fastssl.ops", ("fastssl.loss", "fastssl.momentum", "fastssl.masking", "fastssl.methods")),
]


def within(package: str, *packages: str) -> bool:
    return any(package == each or package.startswith(f"{each}.") for each in packages)


@functools.cache
def edges() -> dict[str, set[str]]:
    return {name: house.imports(name) for name in house.modules()}


def test_no_import_circle():
    """Imports inside functions count too: a circle that is hidden in a function is still one."""
    every = edges()
    assert len(every) > 300 and "fastssl.ops._register" in every["fastssl.ops.similarity"]
    found = {", ".join(circle): "a circle" for circle in house.circles(every)}
    judge(found, exceptions.CIRCLES)


def test_a_circle_is_found():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"a", "d"}}
    assert house.circles(graph) == [["b", "c"]]


def test_files_are_short():
    """A method is read as one page: what does not fit beside its docstrings is a part that others may share."""

    def most(path: Path) -> int:
        return METHOD_LINES if path.parent == Path("fastssl/methods") else FILE_LINES

    found = {str(path): count for path in house.files(".py", *house.CPP) if (count := house.text(path).count("\n")) > most(path)}
    judge(found, exceptions.LONG_FILES)


def test_functions_are_short():
    """Docstrings do not count, and neither do kernels, whose loops share their operands."""
    every = [each for path in PYTHON for each in house.functions(path)]
    every += [each for path in house.files(*house.CPP) for each in house.cpp_functions(path)]
    assert len(every) > 4000
    found = {each.name: each.lines for each in every if each.lines > FUNCTION_LINES and not each.kernel}
    judge(found, exceptions.LONG_FUNCTIONS)


def test_functions_have_few_parameters():
    every = [each for path in PYTHON for each in house.functions(path)]
    found = {each.name: each.parameters for each in every if each.parameters > PARAMETERS and not each.kernel}
    judge(found, exceptions.MANY_PARAMETERS)


def test_nothing_but_the_registration_reaches_a_reference():
    """A reference is the oracle of the tests and the fallback that ``ops/_register.py`` finds by its name."""
    found = {}
    for name in edges():
        reached = sorted(each for each in edges()[name] if within(each, "fastssl.reference"))
        if reached and within(name, "fastssl") and not within(name, "fastssl.reference", "fastssl.testing"):
            found[name] = reached
    judge(found, exceptions.REFERENCES)


def test_a_lower_layer_imports_no_upper_one():
    found = {
        f"{name} -> {each}": ""
        for lower, upper in LAYERS
        for name in edges()
        if within(name, lower)
        for each in edges()[name]
        if within(each, *upper)
    }
    judge(found, exceptions.LAYERS)
