"""Extensions of griffe, which reads signatures and docstrings for mkdocstrings.

griffe knows one argument a line of ``Args:``. Where one sentence describes several arguments, our docstrings write their names side
by side, ``a, b: text``; each of them gets the sentence on the site. And where a function takes ``**options: Unpack[Options]``, the
site shows the keys of the ``TypedDict`` as what they are, arguments by name. An argument that a docstring describes and the
function does not have is still a warning, which fails the build. In ``Returns:`` griffe takes what stands before a colon for the
type; here the type is that of the signature.
"""

import re

from griffe import Extension, Function, Module, Object, Parameter, ParameterKind

RETURNS = re.compile(r"^Returns:\n +(?=\S)", re.MULTILINE)
ITEM = re.compile(r"^(?P<indent> +)(?P<names>\w+(?:, \w+)+): (?P<text>.*)$")


class SharedDescriptions(Extension):
    """Repeats the description for each name of an item."""

    def on_object(self, *, obj: Object, **_) -> None:
        if obj.docstring and not obj.is_alias:
            obj.docstring.value = one_name_each(obj.docstring.value)
            if obj.is_function and obj.returns is not None:
                obj.docstring.value = RETURNS.sub(rf"\g<0>{obj.returns}: ", obj.docstring.value)


class NamedOptions(Extension):
    """Puts the keys of a ``TypedDict`` in the place of ``**options: Unpack[TypedDict]``."""

    def on_package(self, *, pkg: Module, loader, **_) -> None:
        for function in functions_of(pkg):
            for parameter in [p for p in function.parameters if p.kind is ParameterKind.var_keyword]:
                annotation = parameter.annotation
                if getattr(annotation, "canonical_path", None) in ("typing.Unpack", "typing_extensions.Unpack"):
                    path = annotation.slice.canonical_path
                    if path.split(".")[0] == pkg.name:
                        del function.parameters[parameter.name]
                        for key in loader.modules_collection[path].attributes.values():
                            function.parameters.add(
                                Parameter(key.name, annotation=key.annotation, kind=ParameterKind.keyword_only, default="...")
                            )


def functions_of(scope: Object) -> list[Function]:
    """All functions and methods below a module or class."""
    found = []
    for member in scope.members.values():
        if not member.is_alias:
            found += [member] if member.is_function else functions_of(member) if member.is_module or member.is_class else []
    return found


def one_name_each(docstring: str) -> str:
    """The docstring with an item for each argument in its section ``Args:``."""
    lines, out, inside = docstring.split("\n"), [], False
    at = 0
    while at < len(lines):
        line = lines[at]
        if line and not line.startswith(" "):
            inside = line == "Args:"
        item = ITEM.match(line) if inside else None
        at += 1
        if item is None:
            out.append(line)
            continue
        more = []
        while at < len(lines) and lines[at].startswith(item["indent"] + " "):
            more.append(lines[at])
            at += 1
        for name in item["names"].split(", "):
            out += [f"{item['indent']}{name}: {item['text']}", *more]
    return "\n".join(out)
