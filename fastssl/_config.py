"""A file with the options of a command, in YAML or JSON: ``--config FILE`` reads it, and a run writes one beside its checkpoint.

Values keep the text that they have in the file, so that the command checks them as the words of its command line.
"""

import json
from pathlib import Path
from typing import Any

from ._aside import replace_text
from ._ending import UsageError

Value = str | bool | None | list[str]
MOST_BYTES = 1 << 20
TAGS = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "timestamp", "seq"))


def read_options(path: Path) -> dict[str, Value]:
    """The options that a file holds.

    Args:
        path: of a file that ends with ``.json``, or else is read as YAML.

    Returns:
        For each key the text of its value, a truth value, ``None`` where the file has null, or a list of texts.

    Raises:
        UsageError: the file can't be read, or is no mapping from the names of options to such values.
    """
    try:
        text = short_text(path, MOST_BYTES)
    except OSError as error:
        raise UsageError(f"--config {path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--config {path}: is no text in UTF-8") from error
    except ValueError as error:
        raise UsageError(f"--config {path}: {error}, which no file of options needs") from error
    try:
        pairs = json_pairs(text) if path.suffix.lower() == ".json" else yaml_pairs(text)
    except UsageError as error:
        raise UsageError(f"--config {path}: {error}") from error
    except RecursionError:
        raise UsageError(f"--config {path}: is nested too deeply; an option has one value, or a list of them") from None
    found: dict[str, Value] = {}
    for key, value in pairs:
        if key in found:
            raise UsageError(f"--config {path}: {key} is there twice")
        found[key] = value
    return found


def short_text(path: Path, most: int) -> str:
    """The text of a file in UTF-8; no more than ``most`` bytes are read, also of what has no size, such as /dev/zero.

    Raises:
        OSError: it cannot be read.
        ValueError: it has more than ``most`` bytes; ``UnicodeDecodeError`` where they are no text.
    """
    with open(path, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"has more than {most >> 20} MiB")
    return content.decode("utf-8")


def json_pairs(text: str) -> list[tuple[str, Value]]:
    """The keys and values of a JSON object, in which numbers stay as they are written."""
    try:
        found = json.loads(text, object_pairs_hook=tuple, parse_int=str, parse_float=str, parse_constant=str)
    except json.JSONDecodeError as error:
        raise UsageError(f"is no JSON: {error}") from error
    if not isinstance(found, tuple):
        raise UsageError('must hold an object, such as {"epochs": 20}')
    return [(key, known(key, value)) for key, value in found]


def known(key: str, value: Any) -> Value:
    """``value`` of a JSON object where it is one that an option can have."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return value
    raise UsageError(f"{key} must have one value, or a list of numbers or words")


def yaml_pairs(text: str) -> list[tuple[str, Value]]:
    """The keys and values of a YAML mapping. Nothing is built but the tree of its texts."""
    try:
        import yaml
    except ModuleNotFoundError:
        raise UsageError("YAML needs PyYAML (pip install pyyaml); a file that ends with .json is read without it") from None
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise UsageError(f"is no YAML: {' '.join(str(error).split())}") from error
    if tree is None:
        return []
    if not isinstance(tree, yaml.MappingNode):
        raise UsageError("must hold lines such as epochs: 20")

    def key_of(node: Any) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise UsageError("must hold names of options, such as epochs: 20; one of its keys is a list or a mapping")
        return node.value

    def value_of(key: str, node: Any) -> Value:
        if wrong := [each.tag for each in (node, *node.value) if isinstance(each, yaml.Node) and each.tag not in TAGS]:
            kind = wrong[0].removeprefix("tag:yaml.org,2002:")
            raise UsageError(f"{key} must have one value, or a list of numbers or words, got {kind}")
        if isinstance(node, yaml.SequenceNode) and all(isinstance(part, yaml.ScalarNode) for part in node.value):
            return [part.value for part in node.value]
        if not isinstance(node, yaml.ScalarNode):
            raise UsageError(f"{key} must have one value, or a list of numbers or words")
        if node.tag == "tag:yaml.org,2002:bool" and node.value.lower() in ("true", "false"):
            return node.value.lower() == "true"
        return None if node.tag == "tag:yaml.org,2002:null" else node.value

    return [(key_of(key), value_of(key_of(key), node)) for key, node in tree.value]


def write_options(path: Path, heading: str, options: dict[str, Any]) -> None:
    """Writes options, under ``heading`` as comments, to a file that ``read_options`` reads. The file is replaced as a whole."""
    import yaml

    comments = "".join(f"# {line}\n" for line in heading.splitlines())
    text = comments + yaml.safe_dump(options, allow_unicode=True, sort_keys=False, width=1000)
    replace_text(path, text)
