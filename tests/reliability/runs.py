"""Short runs of ``fastssl train`` on 30 small images, for the checks to spoil."""

from pathlib import Path

from tests.support.training import write_grey_classes

from .apart import command

SMALL = ("--image-size", "16", "--batch-size", "8", "--accelerator", "cpu", "--workers", "0", "--map", "none", "--knn-every", "9")


def short_run(name: str, images: Path, out: Path, *more: str) -> None:
    """Trains two epochs of three steps into ``out``, on images that are written where there are none yet."""
    if not images.exists():
        write_grey_classes(images)
    code, _, said = command(["train", name, "--data", f"folder:{images}", *SMALL, "--epochs", "2", "--out", str(out), *more])
    if code:
        raise RuntimeError(f"fastssl train {name} ended with {code}: {said}")
