"""What SECURITY.md promises and the source can show: nothing unpickles, and no loader may run code."""

import ast
from pathlib import Path

from tests.support import house

#: Calls that run what a file says, or may, by the last names of what is called.
FORBIDDEN = {
    "pickle": "pickle runs code", "cPickle": "pickle runs code", "_pickle": "pickle runs code", "dill": "pickle runs code",
    "cloudpickle": "pickle runs code", "joblib": "joblib unpickles", "shelve": "shelve unpickles", "marshal": "marshal loads code",
}  # fmt: skip
LOADS = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False), "numpy.load": ("allow_pickle", False)}
UNSAFE = ("yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.jit.load", "torch.package", "eval", "exec", "os.system")


def faults_of(tree: ast.Module) -> list[str]:
    """What a module does that runs code of a file, each with its line."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"{node.lineno}: {FORBIDDEN[name.split('.')[0]]}" for name in names if name.split(".")[0] in FORBIDDEN]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in UNSAFE:
            found.append(f"{node.lineno}: {called} runs code")
        if called in LOADS:
            name, value = LOADS[called]
            given = [word.value for word in node.keywords if word.arg == name]
            if not (given and isinstance(given[0], ast.Constant) and given[0].value is value):
                found.append(f"{node.lineno}: {called} without {name}={value}")
        if any(word.arg == "trust_remote_code" for word in node.keywords):
            found.append(f"{node.lineno}: trust_remote_code")
    return found


def test_nothing_in_the_package_runs_what_a_file_says():
    paths = [path for path in house.files(".py") if path.parts[0] == "fastssl"]
    assert len(paths) > 200
    assert not {str(path): found for path in paths if (found := faults_of(house.tree(path)))}


def test_a_loader_that_runs_code_is_found():
    lines = [
        "import pickle", "from joblib import load", "torch.load(path)", "torch.load(path, weights_only=False)",
        "np.load(path)", "np.load(path, allow_pickle=True)", "yaml.load(text)", "eval(text)", "f(trust_remote_code=True)",
    ]  # fmt: skip
    assert [len(faults_of(ast.parse(line))) for line in lines] == [1] * len(lines)
    good = "torch.load(path, weights_only=True)\nnp.load(path, allow_pickle=False)\nyaml.safe_load(text)\nmodel.eval()"
    assert faults_of(ast.parse(good)) == []


def test_the_policy_is_part_of_the_repository():
    assert "weights_only=True" in (Path(house.ROOT) / "SECURITY.md").read_text()
