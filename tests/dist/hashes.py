"""``requirements/hashes.txt``: every package that the pinned ones need, at one version, with the hashes of its files."""

import re
import sys
from pathlib import Path

from .build import ROOT, WORK, run

#: What is resolved together. Not gpu-wheels.txt and races.txt, whose environments are of their own.
RESOLVED = ("base.txt", "train.txt", "dev.txt", "peers.txt", "docs.txt", "dist.txt")
#: Their builds differ with the index that they are taken from (CPU, or one of the versions of CUDA), and so do their hashes.
LEFT_OUT = ("torch", "torchvision")
NEVER = "sys_platform == 'never'"
HEADER = """\
# Made by `python -m tests.dist hashes`: what the pinned packages of this folder need, for Python 3.11 and newer, with the hashes
# of its files. `make setup LOCKED=1` installs these files and no others. Not among them are torch and torchvision, whose files
# differ with the index that they come from, and what torch alone needs.
"""


def write(target: Path = ROOT / "requirements" / "hashes.txt") -> Path:
    """Resolves the requirements anew with the newest versions that they allow; needs a network. Replaces ``target`` at the end."""
    WORK.mkdir(parents=True, exist_ok=True)
    never, made = WORK / "never.txt", WORK / target.name
    never.write_text("".join(f"{name} ; {NEVER}\n" for name in LEFT_OUT))
    made.unlink(missing_ok=True)
    files = [ROOT / "requirements" / name for name in RESOLVED]
    emitted = [word for name in LEFT_OUT for word in ("--no-emit-package", name)]
    options = ("--universal", "--python-version", "3.11", "--generate-hashes", "--no-header", "--no-annotate", "--override", never)
    run(sys.executable, "-m", "uv", "pip", "compile", "-q", *options, *emitted, "-o", made, *files)
    packages = re.split(r"^(?=\w)", made.read_text(), flags=re.M)
    made.write_text(HEADER + "".join(each for each in packages if NEVER not in each))
    return made.replace(target)
