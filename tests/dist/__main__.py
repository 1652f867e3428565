"""``python -m tests.dist build`` fills ``dist/``; ``python -m tests.dist check`` installs and tests what is there."""

import argparse
import tempfile
from pathlib import Path

from . import build, environments, hashes


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="python -m tests.dist", description=__doc__)
    main.add_argument("--dist", type=Path, default=build.ROOT / "dist", help="the folder of the wheels and the sources")
    commands = main.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="build the sources' archive, the wheel without kernels and the wheel with them")
    commands.add_parser("hashes", help="write requirements/hashes.txt anew; needs a network")
    check = commands.add_parser("check", help="install each form into fresh environments and run the tests' core there")
    check.add_argument("--form", nargs="+", choices=[*environments.FORMS], default=["wheel", "pure", "sdist-plain"])
    check.add_argument("--python", nargs="+", default=["3.11", "3.12", "3.13"], help="found on PATH as python3.11 and so on")
    check.add_argument("--torch", nargs="+", default=["2.11.0", "newest"], help="versions of torch")
    return main


def check(forms: list[str], pythons: list[str], torches: list[str], dist: Path) -> int:
    """Prints a table of Markdown. Returns 1 if any test failed, or none ran."""
    rows, bad = [], 0
    folder = Path(tempfile.mkdtemp(prefix="dist-check-"))
    for case in environments.cases(forms, pythons, torches):
        version, counts = environments.check(case, dist, folder)
        failed = sum(number for word, number in counts.items() if word not in ("passed", "skipped"))
        bad += bool(failed) or not counts.get("passed")
        rows.append((case.form, case.python, version, counts.get("passed", 0), failed, counts.get("skipped", 0)))
        print(*rows[-1], sep="\t", flush=True)
    print("\n| form | Python | torch | passed | failed | skipped |\n|---|---|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")
    return int(bool(bad) or not rows)


def main() -> int:
    given = parser().parse_args()
    if given.command == "build":
        for made in build.build(given.dist):
            print(made)
        return 0
    if given.command == "hashes":
        print(hashes.write())
        return 0
    return check(given.form, given.python, given.torch, given.dist)


if __name__ == "__main__":
    raise SystemExit(main())
