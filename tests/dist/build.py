"""The three forms in which fastssl is given away, into one folder: the sources, a wheel with compiled kernels, one without.

Both wheels are built from the unpacked archive of the sources, so that a file which it lacks is missed here.
"""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from . import contents, old_libc

ROOT = Path(__file__).resolve().parents[2]
#: Stays between calls, with the compiled objects: only what has changed is compiled again.
WORK = ROOT / "build" / "dist"
PLATFORM = "manylinux_2_28_x86_64"
#: Found at run time, since torch has loaded them.
OF_TORCH = ("libtorch*", "libc10*")


def run(*words: str | Path, folder: Path = ROOT, **env: str) -> None:
    """Runs a command, with the tools of this environment on PATH. Shows its output only where it fails; then ends with it."""
    command = [str(word) for word in words]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"PATH": path} | env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}\nended with status {done.returncode}")


def archive(out: Path) -> Path:
    """The sources, ``fastssl-VERSION.tar.gz``."""
    setup = ("setup.py", "-q", "egg_info", "--egg-base", WORK, "sdist", "--dist-dir", out)
    run(sys.executable, *setup, FASTSSL_BUILD="none")
    (made,) = out.glob("*.tar.gz")
    return made


def unpacked(sources: Path, folder: Path) -> Path:
    """Replaces what an earlier call unpacked, but for its folder ``build``."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.name != "build":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with tarfile.open(sources) as files:
        (top,) = {name.partition("/")[0] for name in files.getnames()}
        files.extractall(folder.parent / "unpacked", filter="data")
    for path in (folder.parent / "unpacked" / top).iterdir():
        path.rename(folder / path.name)
    shutil.rmtree(folder.parent / "unpacked")
    return folder


def wheel(tree: Path, out: Path, **env: str) -> Path:
    """What ``pip wheel`` makes of an unpacked archive, with the setuptools and the torch of this environment."""
    shutil.rmtree(out, ignore_errors=True)
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", out, tree, **env)
    (made,) = out.glob("*.whl")
    return made


def without_kernels(sources: Path, out: Path) -> Path:
    """A wheel for any machine: Python, with the Triton kernels, which are compiled where they run."""
    made = wheel(unpacked(sources, WORK / "pure"), WORK / "wheel", FASTSSL_BUILD="none")
    contents.check_pure(made)
    return shutil.move(made, out / made.name)


def with_kernels(sources: Path, out: Path) -> Path:
    """A wheel for ``PLATFORM``: all kernels that the compilers here can build, linked against an old glibc.

    setuptools names it after this Python, for which only the module ``_C`` is made. fastssl does without that beside another one.
    """
    old = old_libc.make(WORK / "old_libc")
    hidden = "--exclude-libs=ALL"  # what comes from an archive, such as CUDA's runtime library, is no other library's business
    flags = {"LDFLAGS": f"-L{old} -Wl,{hidden}", "NVCC_APPEND_FLAGS": f"-L{old} -Xlinker {hidden}"}
    made = wheel(unpacked(sources, WORK / "compiled"), WORK / "wheel", **flags)
    contents.check_compiled(made)
    run(sys.executable, "-m", "wheel", "tags", "--remove", "--python-tag", "py3", "--abi-tag", "none", made)
    (made,) = made.parent.glob("*.whl")
    excluded = [word for name in OF_TORCH for word in ("--exclude", name)]
    repair = ("repair", "--only-plat", "--plat", PLATFORM, *excluded, "-w", WORK / "repaired", made)
    shutil.rmtree(WORK / "repaired", ignore_errors=True)
    run(sys.executable, "-m", "auditwheel", *repair)
    (repaired,) = (WORK / "repaired").glob("*.whl")
    return shutil.move(repaired, out / repaired.name)


def build(out: Path) -> list[Path]:
    """All three into ``out``, from which the forms of an earlier call are removed."""
    out.mkdir(parents=True, exist_ok=True)
    WORK.mkdir(parents=True, exist_ok=True)
    for path in [*out.glob("fastssl-*.whl"), *out.glob("fastssl-*.tar.gz")]:
        path.unlink()
    sources = archive(out)
    return [sources, without_kernels(sources, out), with_kernels(sources, out)]
