"""``fastssl.patch("lightly")``: another library's names bound to the drop-ins of ``fastssl.compat``, until they are put back.

A module binds what it imports under names of its own. So ``patch`` looks for the original in all loaded modules of the library, and
in the dicts and classes that these define. Names that the user's own modules imported before the patch keep the original: patch
first, then import. Two threads must not patch at once.

A program that ran without the patch must run with it. So where a drop-in refuses a call of a function, the library's own function
gets the call.
"""

import functools
import importlib
import inspect
import operator
import sys
from types import FunctionType, ModuleType
from typing import Any

from ._patched_names import BROUGHT, LATER, LEAVES, METHODS, MODULES, NAMES, SCRIPTS, SHORT, VERSIONS

__all__ = ["Patch", "patch"]

_LIBRARIES = sorted(NAMES.keys() | METHODS.keys() | SHORT.keys())
_WITH_TARGET = BROUGHT | SCRIPTS
_ABSENT = object()


class Patch:
    """What a call of ``patch`` swapped; ``undo()`` puts it back, and so does the end of a ``with`` block.

    Attributes:
        names: the names, as "module.name" or "Class.method", that were bound anew.

    Examples:
        >>> import fastssl
        >>> class MoCo(torch.nn.Module):  # in place of the one in moco/builder.py
        ...     def _dequeue_and_enqueue(self, keys): ...
        ...     def _momentum_update_key_encoder(self): ...
        >>> swapped = fastssl.patch("moco", MoCo)
        >>> swapped.names
        ('MoCo._dequeue_and_enqueue', 'MoCo._momentum_update_key_encoder')
        >>> swapped.undo()
    """

    def __init__(self, library: str, modules: list[tuple], methods: list[tuple]):
        """modules: (module that defines the name, name, replacement); methods: (class or script, name, replacement)."""
        self._library = library
        self._objects: list[tuple[Any, Any]] = []
        self._methods: list[tuple[type, str, Any]] = []
        names: list[str] = []
        for owner, name, new in modules:
            old = getattr(owner, name)
            if _original(old) is new:
                continue
            new = _with_way_back(new, old)
            bound = _rebind(library, old, new)
            if bound:
                self._objects.append((old, new))
                names += bound
        for cls, name, new in methods:
            old = vars(cls).get(name, _ABSENT)
            if _original(old) is not new:
                setattr(cls, name, _with_way_back(new, getattr(cls, name)) if name in LEAVES.get(library, ()) else new)
                self._methods.append((cls, name, old))
                names.append(f"{cls.__name__}.{name}")
        self.names = tuple(names)

    def undo(self) -> None:
        """Puts the originals back, also in modules that were imported in the meantime. A second call does nothing."""
        for old, new in self._objects:
            _rebind(self._library, new, old)
            _answer_no_more(sys.modules[old.__module__], new)
        for cls, name, old in self._methods:
            if old is _ABSENT:
                delattr(cls, name)
            else:
                setattr(cls, name, old)
        self._objects, self._methods = [], []

    def __enter__(self) -> "Patch":
        return self

    def __exit__(self, *_) -> None:
        self.undo()

    def __repr__(self) -> str:
        return f"Patch({self._library!r}, {len(self.names)} names)"


def patch(library: str, target: type | ModuleType | None = None) -> Patch:
    """Swaps a library's functions, classes and methods for the drop-ins, at once; also for the length of a ``with`` block.

    What is swapped already stays so: an inner patch swaps nothing and puts nothing back. Objects that exist keep their class, and
    methods that call it by its name (``super(Name, self)``) still find it.

    Args:
        library: "contrastors", "dinov2", "dinov3", "FlagEmbedding", "grad_cache", "info_nce", "lightly", "open_clip",
            "pytorch_metric_learning" ("pml"), "sentence_transformers", "solo", "swift" (ms-swift), "tevatron", "timm",
            "transformers" (ViTMAE, CLIP, SigLIP and SigLIP 2), "barlow", "dino", "mae", "moco", "mocov3", "supcon", "swav" or
            "vicreg".
        target: for "barlow" the class ``BarlowTwins``, for "vicreg" the class ``VICReg``, for "dino" the class ``DINOLoss``, for
            "mae" the class ``MaskedAutoencoderViT``, for "moco" and "mocov3" the class ``MoCo``, for "supcon" the class
            ``SupConLoss``, or the module that holds it under this name; for "swav" the module ``main_swav``.

    Returns:
        Has ``undo()`` and the swapped ``names``; as a context manager it undoes at the end.

    Raises:
        ValueError: unknown library, or a version of it whose functions take other arguments; nothing is swapped then.
        TypeError: one of those that want a target without it, or a target for another library.
        ImportError: the library is not installed.

    Examples:
        >>> import fastssl
        >>> class MoCo(torch.nn.Module):  # in place of the one in moco/builder.py
        ...     def _dequeue_and_enqueue(self, keys): ...
        ...     def _momentum_update_key_encoder(self): ...
        >>> with fastssl.patch("moco", MoCo):
        ...     print(MoCo._dequeue_and_enqueue.__module__)
        fastssl.compat.moco
    """
    if library not in _LIBRARIES:
        raise ValueError(f"patch: library must be one of {', '.join(map(repr, _LIBRARIES))}, got {library!r}")
    library = SHORT.get(library, library)
    if library in _WITH_TARGET:
        return Patch(library, [], _methods(library, _brought(library, target)))
    if target is not None:
        raise TypeError(f"patch: target is for {', '.join(map(repr, _WITH_TARGET))} alone, got {target!r} for {library!r}")
    theirs = [(_imported(module), name) for module, names in NAMES.get(library, {}).items() for name in names]
    theirs = [(module, name) for module, name in theirs if hasattr(module, name) or name not in LATER.get(module.__name__, ())]
    for path in METHODS.get(library, {}):
        _imported(path.partition(":")[0])
    ours = _drop_ins(library)
    modules = [(module, name, getattr(ours, name)) for module, name in theirs]
    for module, name, new in modules:
        _check_arguments(f"{module.__name__}.{name}", getattr(module, name, None), new)
    return Patch(library, modules, _methods(library))


def _imported(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        library = module.partition(".")[0]
        if error.name is not None and error.name.partition(".")[0] == library:
            raise ImportError(f"patch: {module} was not found; is {library} installed?") from error
        raise


def _drop_ins(library: str) -> ModuleType:
    return importlib.import_module(f"fastssl.compat.{MODULES.get(library, library)}")


def _brought(library: str, target: Any) -> ModuleType:
    """A namespace that holds the user's class or module under its published name. Raises TypeError where it is something else."""
    name = _WITH_TARGET[library]
    if library in SCRIPTS:
        cls = target
        if not isinstance(target, ModuleType):
            raise TypeError(f'patch: "{library}" needs the module {name}, got {target!r}')
    else:
        cls = getattr(target, name, None) if isinstance(target, ModuleType) else target
        if not isinstance(cls, type):
            raise TypeError(f'patch: "{library}" needs the class {name} or the module that holds it, got {target!r}')
    holder = ModuleType(library)
    setattr(holder, name, cls)
    return holder


def _ours(f: Any) -> bool:
    return str(getattr(_original(f), "__module__", "")).startswith("fastssl.compat.")


def _original(f: Any) -> Any:
    """The drop-in that ``_with_way_back`` wrapped, or ``f`` itself."""
    return getattr(f, "_fastssl", f)


def _with_way_back(ours: Any, theirs: Any) -> Any:
    """A function that calls ``theirs`` where ``ours`` refuses a call; ours does so before anything runs.

    Classes stay as they are.
    """
    if not isinstance(ours, FunctionType):
        return ours

    def serve(*args, **kwargs):
        try:
            return ours(*args, **kwargs)
        except (TypeError, ValueError, NotImplementedError):
            return theirs(*args, **kwargs)

    served: Any = functools.wraps(ours)(serve)
    served._fastssl = ours
    for name in ("__module__", "__qualname__"):  # so that it is pickled by the name that it is bound to
        setattr(served, name, getattr(theirs, name, getattr(ours, name)))
    return served


def _methods(library: str, brought: Any = None) -> list[tuple]:
    """(class, name, replacement) for the classes of the table; those without a module are in ``brought``."""
    ours = _drop_ins(library)
    found = []
    for path, names in METHODS.get(library, {}).items():
        module, _, cls = path.rpartition(":")
        holder = _imported(module) if module else brought
        if library == "lightly" and not hasattr(holder, cls):
            continue  # lightly has some classes only where timm is installed
        there = getattr(holder, cls)
        if cls == "ViTMAEForPreTraining" and hasattr(there, "forward_loss"):
            names = {"forward_loss": "forward_loss"}
        for name, replacement in names.items():
            known = VERSIONS.get(f"{cls}.{name}")
            if known is not None and hasattr(there, name) and not _ours(vars(there).get(name)) and not known(there):
                raise ValueError(f"patch: {cls}.{name} of this version computes something else than the drop-in")
            found.append((there, name, _of_this_version(library, there, name, operator.attrgetter(replacement)(ours))))
            _check_arguments(f"{cls}.{name}", getattr(there, name, None), found[-1][2])
    return found


def _of_this_version(library: str, there: Any, name: str, ours: Any) -> Any:
    """The drop-in for the version that the user has, where other versions take other arguments."""
    theirs = getattr(there, name, None)
    if library != "swav" or not isinstance(theirs, FunctionType) or [*inspect.signature(theirs).parameters] != ["out"]:
        return ours
    return _original(theirs) if _ours(theirs) else _drop_ins(library)._of_script(there)


def _check_arguments(where: str, theirs: Any, ours: Any) -> None:
    """Raises ValueError unless the installed version has the name, and takes the arguments that ours takes, in their order.

    Ours may take more arguments, by keyword only; a class of ours may also take more at the end, as those of other versions do.
    """
    if theirs is None:
        raise ValueError(f"patch: {where} is missing; is this another version?")
    if _original(theirs) is ours:
        return
    callables = [getattr(f, "__init__") if isinstance(f, type) else f for f in (ours, theirs)]  # noqa: B009
    if not all(isinstance(f, FunctionType) for f in callables):
        return
    of_ours, of_theirs = (inspect.signature(f).parameters.values() for f in callables)
    wanted, got = ([p.name for p in of if p.kind is not p.KEYWORD_ONLY] for of in (of_ours, of_theirs))
    named, known = ({p.name for p in of if p.kind is p.KEYWORD_ONLY} for of in (of_theirs, of_ours))
    if got != (wanted[: len(got)] if isinstance(theirs, type) else wanted) or not named <= known | set(wanted):
        raise ValueError(f"patch: {where} must take ({', '.join(wanted)}), this version takes ({', '.join(got)})")


def _rebind(library: str, old: Any, new: Any) -> list[str]:
    """Binds ``new`` wherever a loaded module of the library binds ``old``. Returns the names, as "module.name"."""
    names = []
    for path, module in list(sys.modules.items()):
        if path.partition(".")[0] != library or not isinstance(module, ModuleType):
            continue
        for name in [name for name, value in vars(module).items() if value is old]:
            if path == getattr(old, "__module__", None) and _names_itself(old):
                _answer(module, name, old, new)
            else:
                setattr(module, name, new)
            names.append(f"{path}.{name}")
        for where, table in _tables(path, module):
            for key in [key for key, value in table.items() if value is old]:
                table[key] = new
                names.append(f"{where}[{key!r}]")
    return names


def _tables(path: str, module: ModuleType) -> list[tuple[str, dict]]:
    """(name, dict) for the dicts that a module and its classes hold, such as solo-learn's dict of optimizers."""
    held = [(path, module)] + [(f"{path}.{n}", c) for n, c in vars(module).items() if isinstance(c, type) and c.__module__ == path]
    pairs = [(f"{where}.{name}", value) for where, holder in held for name, value in list(vars(holder).items())]
    return [(where, value) for where, value in pairs if type(value) is dict and not where.rpartition(".")[2].startswith("__")]


def _names_itself(cls: Any) -> bool:
    """Whether a method of the class looks the class up by its name, as ``super(Name, self)`` does."""
    if not isinstance(cls, type):
        return False
    return any(isinstance(f, FunctionType) and cls.__name__ in f.__code__.co_names for f in vars(cls).values())


class _Answering(ModuleType):
    """A module that answers with a drop-in where its own functions, which read its globals, still find the original."""


class _Answer:
    """One such name: it gives the drop-in while its module holds the original, and anything else that the module holds as it is."""

    def __init__(self, name: str, old: Any, new: Any):
        self.name, self.old, self.new = name, old, new

    def _missing(self, module: ModuleType) -> str:
        return f"module {module.__name__!r} has no attribute {self.name!r}"

    def __get__(self, module: Any, _: type) -> Any:
        if module is None:
            return self
        held = vars(module).get(self.name, _ABSENT)
        if held is _ABSENT:
            raise AttributeError(self._missing(module))
        return self.new if held is self.old else held

    def __set__(self, module: ModuleType, value: Any) -> None:
        vars(module)[self.name] = self.old if value is self.new else value

    def __delete__(self, module: ModuleType) -> None:
        if vars(module).pop(self.name, _ABSENT) is _ABSENT:
            raise AttributeError(self._missing(module))


def _answer(module: ModuleType, name: str, old: Any, new: Any) -> None:
    """Whoever asks the module for ``name``, or imports it from there, gets ``new``."""
    if not isinstance(module, _Answering):
        module.__class__ = type("AnsweringModule", (_Answering, type(module)), {})
    setattr(type(module), name, _Answer(name, old, new))


def _answer_no_more(module: ModuleType, new: Any) -> None:
    """Undoes ``_answer``."""
    for name, value in list(vars(type(module)).items()):
        if isinstance(value, _Answer) and value.new is new:
            delattr(type(module), name)
