"""Writes the benchmark numbers of README.md and docs/benchmarks.md from the result files."""

import argparse
import sys
from pathlib import Path

from benchmarks.report.pages import PICTURES, all_results, pages
from benchmarks.report.tables import RESULTS, workload_report


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="folder of result files")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a page differs")
    parser.add_argument("--print", action="store_true", help="print every result in full instead, with targets and errors")
    parser.add_argument("--pictures", action="store_true", help="also draw the pictures of the pages again, with matplotlib")
    args = parser.parse_args(argv)
    if args.print:
        for slug, results in all_results(args.results).items():
            for found in results:
                print(f"## {slug}\n\n{workload_report(found)}\n")
        return 0
    changed = {path: text for path, text in pages(args.results).items() if not path.exists() or path.read_text() != text}
    for path, text in changed.items():
        print(f"{path.name} {'differs from the result files' if args.check else 'written'}")
        if not args.check:
            path.write_text(text)
    if args.pictures and not args.check:
        from benchmarks.report.plots import draw_pages

        for picture in draw_pages(args.results, PICTURES):
            print(f"{picture.name} drawn")
    return 1 if args.check and changed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
