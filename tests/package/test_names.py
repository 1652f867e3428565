"""What comments, docstrings and pages name exists, and they use no private words."""

import functools
import importlib
import re
from pathlib import Path

from tests.package import house_exceptions as exceptions
from tests.support import house
from tests.support.house import judge

#: Pages that speak of what is gone.
PAST = ("CHANGELOG.md",)
READ = [path for path in house.files(".py", ".md", *house.CPP) if str(path) not in PAST and path.name not in house.ABSENT]
FILE = re.compile(r"(?<![\w/.<>*{}-])[\w/.<>*{}-]*[\w>*}]\.(?:py|h|inl|cpp|cu|cuh|md|json|toml|txt|ini|cfg|sh)\b(?![\w(/*.]\w)")
QUOTED = re.compile(r"(?<!`)(`{1,2})(?!`)([^`\n]+)\1(?!`)")
NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
#: What an abbreviated module is in these pages and comments.
SHORT = {
    "F": "torch.nn.functional",
    "np": "numpy",
    "nn": "torch.nn",
    "tl": "triton.language",
    "gl": "triton.experimental.gluon.language",
}


@functools.cache
def paths() -> tuple[str, ...]:
    every = house.files(".py", ".md", ".json", ".toml", ".txt", ".ini", *house.CPP)
    return tuple(f"/{path}" for path in [*every, *Path(house.ROOT / "benchmarks").rglob("*.json")])


@functools.cache
def all_strings() -> str:
    return "\n".join(string for path in house.files(".py") for _, string in house.strings(path))


def file_exists(name: str) -> bool:
    """Whether it is the end of the path of a file here, where <op>, {a,b} and * stand for any name, or a string of some program,
    which writes it."""
    parts = re.split(r"(<[^>]*>|\{[^}]*\}|\*)", name.lstrip("./"))
    pattern = "".join("[^/]*" if number % 2 else re.escape(part) for number, part in enumerate(parts))
    match = re.compile(rf".*/_?{pattern}$").match
    return any(match(path) for path in paths()) or name in all_strings()


def _stale(found_in, exists) -> dict[str, str]:
    """Name -> the places where it stands, of names that do not exist."""
    where: dict[str, list[str]] = {}
    for path in READ:
        for number, prose in house.prose(path):
            for name in found_in(prose):
                where.setdefault(name, []).append(f"{path}:{number}")
    return {name: ", ".join(places[:4]) for name, places in where.items() if not exists(name)}


def quoted_names(prose: str) -> list[str]:
    """Names in backquotes that look like code: with a dot, an underscore or parentheses."""
    found = []
    for _, code in QUOTED.findall(prose):
        name = re.sub(r"\(.*\)$", "", code.strip())
        if NAME.fullmatch(name) and not FILE.fullmatch(name) and (name != code or "." in name or "_" in name.strip("_")):
            found.append(name)
    return found


def name_exists(name: str) -> bool:
    """Whether code of the repository uses each part of it, or an installed library has it."""
    if all(part in house.code_words() for part in name.split(".")):
        return True
    parts = SHORT.get(name.split(".")[0], name.split(".")[0]).split(".") + name.split(".")[1:]
    for length in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except Exception:
            continue
        return all((found := getattr(found, part, None)) is not None for part in parts[length:])
    return False


#: Words that only their author reads at first sight, and what to write in their place.
PRIVATE = {
    r"as (it|they) lies?": "in its own memory layout",
    r"in words": "with a message, or: a sentence that says why",
    r"lean": "plain, or: without ids, bias or ranks",
    r"in turns": "interleaved, or: one after the other",
    r"gates?": "accuracy check",
    r"facts": "device properties, or: row bounds",
    r"(a|each|every|one) work|all works": "workload, or: task of a GPU run",
}
GLOSSARY = Path("docs/glossary.md")


def private_words() -> dict[str, str]:
    """ "file: word" -> the lines where it stands, and what to write; in comments, docstrings, pages, and in errors and helps."""
    found: dict[str, list[str]] = {}
    words = re.compile(rf"\b(?:{'|'.join(PRIVATE)})\b(?!\()", re.I)
    for path in READ:
        if path == GLOSSARY:
            continue
        sentences = [each for each in house.strings(path) if " " in each[1]] if path.suffix == ".py" else []
        for number, prose in [*house.prose(path), *sentences]:
            for match in words.finditer(QUOTED.sub("", prose)):
                advice = next(say for word, say in PRIVATE.items() if re.fullmatch(word, match[0], re.I))
                found.setdefault(f"{path}: {match[0].lower()}", [advice]).append(str(number))
    return {key: ", ".join(lines) for key, lines in found.items()}


def stale_files() -> dict[str, str]:
    return _stale(FILE.findall, file_exists)


def stale_names() -> dict[str, str]:
    return _stale(quoted_names, name_exists)


def test_files_that_are_named_exist():
    judge(stale_files(), exceptions.FILES)


def test_names_in_backquotes_exist():
    judge(stale_names(), exceptions.NAMES)


def test_what_does_not_exist_is_seen():
    assert FILE.findall("see `ops/nothing.py`, a_b.cuh. and docs/x.md)") == ["ops/nothing.py", "a_b.cuh", "docs/x.md"]
    assert not file_exists("ops/nothing.py") and file_exists("ops/similarity.py") and file_exists("csrc/cpu/<op>.cpp")
    assert quoted_names("`no_name`, ``Also.none``, `F.none(x, 2)` and `x`, `a b_c`") == ["no_name", "Also.none", "F.none"]
    assert not any(map(name_exists, ("no" + "_name_of_ours", "F.no" + "thing_at_all"))) and name_exists("F.cross_entropy")


def test_no_private_words():
    judge(private_words(), exceptions.WORDS)
