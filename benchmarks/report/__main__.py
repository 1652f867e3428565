"""``python -m benchmarks.report [--readme README.md]``: prints every result file as markdown, or rewrites the README's block."""

import argparse
import sys
from pathlib import Path

from benchmarks.report.tables import RESULTS, all_results, readme_block, update_readme, work_report


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description="tables from benchmarks/results")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--readme", type=Path, help="rewrite the block between the bench markers of this file")
    args = parser.parse_args(argv)
    if args.readme:
        print(f"{args.readme}: {'updated' if update_readme(args.readme, readme_block(args.results)) else 'already up to date'}")
        return 0
    for slug, results in all_results(args.results).items():
        for found in results:
            print(f"## {slug}\n\n{work_report(found)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
