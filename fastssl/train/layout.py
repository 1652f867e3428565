"""Which files below a folder are images, their classes, and whether they train or test. ``docs/data.md`` states the rules.

A class is a subfolder with all images below it. Hidden entries and what runs wrote are no data, links are followed, and each folder
is read once.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastssl._ending import visible
from fastssl.train import UsageError
from fastssl.train.rundir import drawn_of_checkpoints, holds_run, written_by_run

PICTURES = {".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff"}
IMAGE_SUFFIXES = PICTURES | {".webp", ".npy"}
ARRAYS = ".npy"  # read only where there are no other images: beside those it is a mask or a table of features
TRAIN, TEST = ("train", "training"), ("test", "testing", "val", "valid", "validation")  # in any letter case, the first found
PART = re.compile(r"(?<![a-z])(train|training|test|testing|val|valid|validation|fold|split)(?![a-z])", re.IGNORECASE)
LEVEL = ("images", "image")  # a folder that only holds the others, as in Tiny-ImageNet
NO_DATA = {"__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information", "lost+found"}  # of the systems
NO_FILES = {"thumbs.db", "desktop.ini"}
TEST_SHARE = 5  # one file in five of each class is a test file where the folder has no test part of its own


@dataclass
class Layout:
    """Image files of each class for the two halves; what to say about how they were found, and what to warn of."""

    train: dict[str, list[Path]]
    test: dict[str, list[Path]]
    notes: list[str] = field(default_factory=list)
    parted: bool = False  # the test images are those of ``_parted``
    warnings: list[str] = field(default_factory=list)


class Search:
    """Lists folders and counts what it passes over: ``hidden`` entries, files that are no images by their suffix, and ``runs``.

    A folder of a run is passed over whole. Where a run was kept among the images, in one of the ``parts`` that are data by their
    place (the root, a level, the train or test folder), only what the run wrote is.
    """

    def __init__(self, root: Path):
        self.root, self.hidden = root, 0
        self.others: Counter[str] = Counter()
        self.counted: set[Path] = set()
        self.runs: set[Path] = set()
        self.parts = {root}
        self.warnings: list[str] = []
        self.linked: set[Path] = set()

    def entries(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """Subfolders and image files of ``folder`` itself, each in order."""
        folders: list[Path] = []
        files: list[Path] = []
        hidden, others = 0, Counter[str]()
        try:
            with os.scandir(folder) as found:
                listed = list(found)
        except OSError as error:
            raise UsageError(f"--data folder:{self.root}: {folder} cannot be listed: {error.strerror}") from None
        run = holds_run(folder, (entry.name for entry in listed))
        drawn = drawn_of_checkpoints(entry.name for entry in listed)
        for entry in listed:
            name = entry.name.lower()
            suffix = Path(name).suffix
            if entry.is_symlink():
                self.linked.add(Path(entry.path))
            if (run and written_by_run(entry.name)) or entry.name in drawn:
                continue
            if name.startswith(".") or name in NO_DATA or name in NO_FILES:
                hidden += 1
            elif entry.is_dir():
                folders.append(Path(entry.path))
            elif suffix in IMAGE_SUFFIXES and entry.is_file():
                files.append(Path(entry.path))
            else:
                others["linked to nothing" if entry.is_symlink() and not entry.is_file() else suffix or "without suffix"] += 1
        once = folder not in self.counted
        self.counted.add(folder)
        if run:
            self.runs.add(folder)
            if folder not in self.parts:
                if files and once:
                    away = "which are left out with it; move the run away to learn from them"
                    self.warnings.append(f"{folder} holds a run and {counted(len(files), 'other image')}, {away}")
                return [], []
        if once:
            self.hidden += hidden
            self.others += others
        return sorted(folders), sorted(files)

    def images(self, folder: Path, above: tuple[Path, ...]) -> list[Path]:
        """Image files at any depth of ``folder``. A link back to it, or to a folder ``above``, leads nowhere."""
        return sorted(file for files in self._below(folder, above) for file in files)

    def holds_images(self, folder: Path, above: tuple[Path, ...]) -> bool:
        """Whether there is one of ``images``. Only what lies before it is listed, and none of it counts as passed over."""
        aside = Search(self.root)
        aside.parts = self.parts
        return any(aside._below(folder, above))

    def _below(self, folder: Path, above: tuple[Path, ...]) -> Iterator[list[Path]]:
        """The image files of each folder, itself included."""
        seen, waiting = {_identity(path) for path in above}, [folder]
        while waiting:
            place = waiting.pop()
            if (this := _identity(place)) in seen:
                continue
            seen.add(this)
            folders, files = self.entries(place)
            waiting += folders
            yield files

    def level(self, folder: Path) -> Path:
        """``folder``, or its subfolder called images where nothing else in it holds an image."""
        aside = Search(self.root)  # its counts are not wanted: these places are listed again
        aside.parts = self.parts
        folders, files = aside.entries(folder)
        named = [path for path in folders if path.name.lower() in LEVEL]
        if files or len(named) != 1:
            return folder
        if any(self.holds_images(path, (folder,)) for path in folders if path != named[0]):
            return folder
        self.parts.add(named[0])
        return self.level(named[0])

    def classes(self, folder: Path) -> tuple[dict[str, list[Path]], list[Path]]:
        """Images by class subfolder, and those without a class: of a folder that holds no class subfolders."""
        inner = self.level(folder)
        above = tuple(dict.fromkeys((self.root, folder, inner)))
        folders, flat = self.entries(inner)
        classes = {path.name: self.images(path, above) for path in folders}
        if empty := [path.name for path in folders if not classes[path.name] and not self._runs_in(path)]:
            self.warnings.append(f"no images in {shortened(empty)} of {inner}, left out")
        classes = {name: files for name, files in classes.items() if files}
        table = folder / f"{folder.name}_annotations.txt"
        if flat and not classes and table.is_file():
            return self._annotated(table, flat)
        if flat and classes:
            lie = "lies beside the class folders of {} and is" if len(flat) == 1 else "lie beside the class folders of {} and are"
            beside = f"{counted(len(flat), 'image')} {lie.format(inner)} left out"
            self.warnings.append(f"{beside}: {shortened([file.name for file in flat])}")
            flat = []
        return classes, flat

    def _runs_in(self, folder: Path) -> bool:
        return any(run.is_relative_to(folder) for run in self.runs)

    def _annotated(self, table: Path, files: list[Path]) -> tuple[dict[str, list[Path]], list[Path]]:
        """Classes from Tiny-ImageNet's table of file names and classes, one a line, separated by tabs."""
        rows = (line.split("\t") for line in table.read_text(errors="replace").splitlines())
        label = {row[0]: row[1] for row in rows if len(row) > 1}
        classes: dict[str, list[Path]] = {}
        for file in files:
            if file.name in label:
                classes.setdefault(label[file.name], []).append(file)
        if (missing := len(files) - sum(map(len, classes.values()))) and classes:
            self.warnings.append(f"{missing} of {len(files)} images not in {table}, left out")
        return classes, [] if classes else files

    def skipped(self) -> list[str]:
        notes = [f"{counted(self.others.total(), 'other file')} ({_counted(self.others)})"] if self.others else []
        notes += [counted(self.hidden, "hidden entry", "hidden entries")] if self.hidden else []
        runs = [str(path.relative_to(self.root)) if path != self.root else str(path) for path in sorted(self.runs)]
        return notes + ([f"files of {counted(len(runs), 'run')} ({shortened(runs)})"] if runs else [])


def find_images(root: Path) -> Layout:
    """The layout of ``root``: a split, class subfolders, or images alone."""
    if not root.is_dir():
        raise UsageError(f"--data folder:{root}: there is no such folder")
    search = Search(root)
    inner = search.level(root)
    folders, _ = search.entries(inner)
    train = [path for path in folders if path.name.lower() in TRAIN]
    test = sorted((path for path in folders if path.name.lower() in TEST), key=lambda path: (TEST.index(path.name.lower()), path))
    search.parts.update(train, test)
    if len(train) > 1:
        raise UsageError(f"--data folder:{root}: {' and '.join(path.name for path in train)} are both the training part")
    if train:
        layout = _of_split(search, inner, train[0], test)
    else:
        layout = _of_one(search, root, inner, test)
    _keep_pictures(layout, search.others)
    if not any(layout.train.values()):
        where = f" in {train[0].name}" if train else ""
        met = "; ".join(search.skipped())
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise UsageError(f"--data folder:{root}: no images{where} there ({suffixes}){'; there are ' + met if met else ''}")
    if search.skipped():
        layout.notes.append("left out: " + ", ".join(search.skipped()))
    layout.warnings = search.warnings + layout.warnings + _not_shared(layout) + _of_two_classes(layout, search)
    return layout


def refuse_as_out(out: Path, root: Path) -> None:
    """UsageError where ``--out`` is a folder with images of ``root``, to which a run would add its own.

    A run that an earlier version began there goes on.
    """
    if not out.is_dir() or not root.is_dir() or not out.resolve().is_relative_to(root.resolve()) or holds_run(out, os.listdir(out)):
        return
    if images := Search(out).images(out, ()):
        held = f"holds {counted(len(images), 'image')} of --data folder:{root}"
        raise UsageError(f"--out {out}: {held}, and the pictures of a run would lie among them; name a folder of its own")


def _of_one(search: Search, root: Path, inner: Path, test: list[Path]) -> Layout:
    """The layout of class subfolders, or of images alone, without a split."""
    classes, flat = search.classes(inner)
    tests = [path.name for path in test if path.name in classes]
    if tests and len(tests) == len(classes):
        raise UsageError(f"--data folder:{root}: {shortened(tests)} but no train folder; to learn from it, name {test[0]} itself")
    layout = _parted(classes or {root.name: flat}, root.name)
    split_inside = _split_inside(classes, inner)
    if len(classes) == 1:
        ((name, files),) = classes.items()
        deeper = _folders_in(inner / name, files)
        if len(deeper) > 1 and not split_inside:
            below = f"{shortened(sorted(deeper))} are folders in it; folder:{inner / name} would take them for classes"
            layout.warnings.append(f"all images are of one class, {name}: {below}")
    layout.warnings += split_inside or _too_high(classes, inner)
    if tests:
        layout.warnings.append(f"{shortened(tests)} of {inner} is taken for a class, since there is no train folder beside it")
    return layout


def _folders_in(folder: Path, files: list[Path]) -> list[str]:
    """Names of the subfolders of ``folder`` that the files lie below, in their order."""
    return list(dict.fromkeys(parts[0] for file in files if len(parts := file.relative_to(folder).parts) > 1))


def _split_inside(classes: dict[str, list[Path]], inner: Path) -> list[str]:
    """A warning of class folders that each hold a training and a test part, which are read as one."""
    parted = {}
    for name, files in classes.items():
        below = _folders_in(inner / name, files)
        parts = [next((part for part in below if part.lower() in names), None) for names in (TRAIN, TEST)]
        if None not in parts:
            parted[name] = parts
    if not parted:
        return []
    name, (train, test) = next(iter(parted.items()))
    if len(classes) == 1:
        return [f"all images are of one class, {name}: it holds {train} and {test}; folder:{inner / name} would read that split"]
    hold = f"{shortened(list(parted))} of {inner} {'holds' if len(parted) == 1 else 'hold'} {train} and {test} in the class"
    lay = f"{train}/{name}/... and {test}/{name}/... would be read as a split"
    return [f"{hold}, and both are read as one; {lay}"]


def _too_high(classes: dict[str, list[Path]], inner: Path) -> list[str]:
    """A warning of class folders that look like parts of a data set: most have the name of one, or all hold the same folders."""
    named = [name for name in classes if PART.search(name)]
    if len(named) > 1 and 2 * len(named) >= len(classes):
        way = f"parts of a split are found under the names train and test, or one of them as folder:{inner / named[0]}"
        return [f"{shortened(named)} of {inner} are taken for classes; {way}"]
    below = [set(_folders_in(inner / name, files)) for name, files in classes.items()]
    common = set.intersection(*below) if len(below) > 1 else set()
    if len(common) < 2:
        return []
    hold = f"all {len(classes)} class folders of {inner} hold the folders {shortened(sorted(common))}"
    return [f"{hold}; their images count for the class that holds them, be they of other classes or masks"]


def _beside_parts(search: Search, inner: Path, train: Path, layout: Layout) -> list[str]:
    """A warning of images beside the train folder. Arrays beside pictures are labels or tables of features."""
    flat = search.entries(inner)[1]
    if any(file.suffix.lower() != ARRAYS for files in layout.train.values() for file in files):
        flat = [file for file in flat if file.suffix.lower() != ARRAYS]
    if not flat:
        return []
    lie = "lies" if len(flat) == 1 else "lie"
    left = f"{counted(len(flat), 'image')} {lie} beside {train.name} of {inner} and {'is' if len(flat) == 1 else 'are'} left out"
    return [f"{left}: {shortened([file.name for file in flat])}"]


def _of_split(search: Search, inner: Path, train: Path, test: list[Path]) -> Layout:
    """The layout of a train folder and of the first test folder that has labels where the train folder has them."""
    classes, flat = search.classes(train)
    others = [path.name for path in search.entries(inner)[0] if path != train]
    chosen: Path | None = None
    labelled: dict[str, list[Path]] = {}
    unlabelled: list[Path] = []
    for path in test:
        labelled, unlabelled = search.classes(path)
        if labelled or (unlabelled and not classes):
            chosen = path
            break
        search.warnings.append(f"{path} has no {'images with classes' if unlabelled else 'images'}, left out")
    unnamed = search.root.name
    if chosen is None:
        layout = _parted(classes or {unnamed: flat}, train.name)
    else:
        layout = Layout(classes or {unnamed: flat}, labelled or {unnamed: unlabelled}, [f"split of {train.name} and {chosen.name}"])
        others.remove(chosen.name)
    if others:
        layout.notes.append(f"not looked at: {shortened(others)}")
    layout.warnings += _beside_parts(search, inner, train, layout)
    aside = (inner / name for name in others if name.lower() not in TEST)
    if unread := [path.name for path in aside if search.holds_images(path, (search.root, inner, train))]:
        beside = "is a folder of images beside it and is" if len(unread) == 1 else "are folders of images beside it and are"
        left = f"{shortened(unread)} {beside} left out; where {train.name} is a class, give its folder another name"
        layout.warnings.append(f"{train.name} of {inner} is taken for the training part: {left}")
    return layout


def _parted(files: dict[str, list[Path]], name: str) -> Layout:
    """A layout in which one file in five of each class is a test file."""
    train = {label: [file for i, file in enumerate(found) if i % TEST_SHARE != TEST_SHARE - 1] for label, found in files.items()}
    test = {label: found[TEST_SHARE - 1 :: TEST_SHARE] for label, found in files.items()}
    return Layout(train, test, [f"every {TEST_SHARE}th image of {name} is a test image"], True)


def _keep_pictures(layout: Layout, others: Counter) -> None:
    """Leaves arrays out where there are pictures, and the classes that have nothing else."""
    halves = (layout.train, layout.test)
    suffixes = {file.suffix.lower() for half in halves for files in half.values() for file in files}
    if ARRAYS not in suffixes or suffixes == {ARRAYS}:
        return
    for half in halves:
        for label, files in half.items():
            half[label] = [file for file in files if file.suffix.lower() != ARRAYS]
            others[ARRAYS] += len(files) - len(half[label])
    emptied = [label for label in dict.fromkeys([*layout.train, *layout.test]) if not any(half.get(label) for half in halves)]
    for label in emptied:
        for half in halves:
            half.pop(label, None)
    if emptied:
        layout.warnings.append(
            f"no images but {ARRAYS} files in {shortened(emptied)}, left out beside the pictures of other classes"
        )


def _not_shared(layout: Layout) -> list[str]:
    """Warnings of the classes that only one of two halves has."""
    train, test = ({label for label, files in half.items() if files} for half in (layout.train, layout.test))
    if not test:
        none = (
            f"no class has {TEST_SHARE}; kNN and linear probe are left out"
            if len(train) > 1
            else f"there are fewer than {TEST_SHARE}"
        )
        return [f"no test images: every {TEST_SHARE}th image of a class is one, and {none}"]
    if len(train | test) < 2:
        return []
    few = f" (fewer than {TEST_SHARE} images)" if layout.parted else ""
    named = (("test", train - test, few), ("training", test - train, ""))
    return [
        f"{counted(len(names), 'class', 'classes')} without {half} images{why}: {shortened(sorted(names))}"
        for half, names, why in named
        if names
    ]


def _of_two_classes(layout: Layout, search: Search) -> list[str]:
    """A warning of files that links make images of more than one class."""
    if not search.linked:
        return []
    folders: dict[Path, str] = {}
    met: dict[str, tuple[str, Path]] = {}
    twice: dict[str, tuple[Path, Path]] = {}
    for label, files in (*layout.train.items(), *layout.test.items()):
        for file in files:
            if file.parent not in folders:
                folders[file.parent] = os.path.realpath(file.parent)
            real = os.path.realpath(file) if file in search.linked else os.path.join(folders[file.parent], file.name)
            other, before = met.setdefault(real, (label, file))
            if other != label:
                twice.setdefault(real, (before, file))
    if not twice:
        return []
    first = " and ".join(str(file.relative_to(search.root)) for file in next(iter(twice.values())))
    many = "1 file is read" if len(twice) == 1 else f"{len(twice)} files are read"
    return [f"{many} under more than one class, since folders or files are linked: {shortened([first])}"]


def shortened(names: Sequence[str], most: int = 5) -> str:
    """The first names on one line, without characters that a terminal cannot show."""
    return visible(", ".join(names[:most]) + (", ..." if len(names) > most else ""))


def counted(count: int, one: str, several: str = "") -> str:
    """A number with its noun, such as "1 class" or "2 classes"."""
    return f"{count} {one if count == 1 else several or one + 's'}"


def _counted(counts: Counter, most: int = 5) -> str:
    return shortened([f"{count} {name}" for name, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))], most)


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
