"""Times candidate tiles of the similarity kernels on this GPU:  python -m benchmarks.tune --out DIR [--seconds S]

    1. Processes without a GPU context compile every candidate (``candidates.py``) of every case (``cases.py``).
    2. One process times the candidates, each interleaved with the usual configuration, as replays of a CUDA graph. Where a
       candidate kills that process, the next process goes on behind the candidate (``worker.py``).
    3. DIR/tune.json gets all measurements, DIR/tune.md a line for each key, and DIR/tuned/similarity_sm90.py the tiles that won.
       Copy that file into fastssl/kernels/tuned, and run the tests that compile every tile.

Chunk sizes that win are printed and stand in tune.json: they are the arguments of ``chunk_shape``. Where chunks beat the tiles of
wide rows, the tuned table says so. ``--list`` makes the list of candidates, without a GPU; ``--device cpu`` rehearses at tiny
shapes in Triton's interpreter. Imports the other files of ``tune``, and ``core.machine``.
"""

import argparse
import json
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from dataclasses import astuple, dataclass
from itertools import zip_longest
from pathlib import Path

import torch

from benchmarks.core import machine
from benchmarks.tune import candidates as tune_candidates
from benchmarks.tune import worker as tune_worker
from benchmarks.tune.cases import NO_TILE, Case, Config, Key, architecture, usual_config
from fastssl.kernels import tuned
from fastssl.kernels.tiles.config import pick_config

#: A winner is faster than the usual configuration by this, and by twice the difference between two runs of the usual one.
LEAST_GAIN = 1.03
#: A winner is in no case slower than this. Where another candidate is faster still by ``FINER`` in one case, finer keys would pay.
LEAST_ANYWHERE, FINER = 0.97, 1.05
#: Part of the time for compiling; seconds without progress after which the timing process hangs; how often it may die.
COMPILE_SHARE, HANG_S, RESTARTS = 0.4, 60.0, 20
#: Seconds of the time that are kept for the last item, and for writing.
GRACE_S, WRITE_S = 4.0, 4.0

LATE = "out of time"
WORKER = [sys.executable, "-m", "benchmarks.tune.worker"]


def plan_items(cases: tuple[Case, ...], tries: dict[Key, list[Config]]) -> list[tuple[int, list[Config]]]:
    """(case, its configurations) in the order of timing: the first case of every key, then the second case of every key, ..."""
    of_key: dict[Key, list[int]] = {}
    for index, case in enumerate(cases):
        of_key.setdefault(case.key, []).append(index)
    ranks = zip_longest(*of_key.values())
    return [(index, tries[cases[index].key]) for rank in ranks for index in rank if index is not None]


def precompile(plan: dict, num_sms: int, seconds: float, workers: int) -> dict:
    """Compiles the candidates of a plan in processes; returns {"done", "left", "failed", "seconds"}.

    A task compiles one candidate for all cases of its key; chunks compile nothing. Candidates that fail leave the plan, except the
    usual configuration.
    """
    begin, cases = time.monotonic(), tune_worker.cases(plan["device"])
    tasks: dict[tuple[Key, Config], list[int]] = {}
    for index, configs in plan["items"]:
        for config in configs if not cases[index].chunked else ():
            indices = tasks.setdefault((cases[index].key, tuple(config)), [])
            indices += [] if index in indices else [index]
    failed, done = {}, 0
    jobs = [(plan["arch"], num_sms, tuple(indices), config, plan["device"]) for (_, config), indices in tasks.items()]
    with multiprocessing.get_context("spawn").Pool(min(workers, len(jobs) or 1)) as pool:
        results = pool.imap_unordered(tune_worker.compile_cases, jobs)
        try:
            while done < len(jobs):
                left = begin + seconds - time.monotonic()
                indices, config, reason = results.next(max(0.0, left))
                failed |= {(cases[indices[0]].key, config): reason} if reason else {}
                done += 1
        except multiprocessing.TimeoutError:
            print("tune: compiling took too long, or a process died; the timing process compiles the rest", flush=True)
    keep = lambda index, configs: [c for c in configs if c == configs[0] or (cases[index].key, tuple(c)) not in failed]  # noqa: E731
    plan["items"] = [(index, keep(index, configs)) for index, configs in plan["items"]]
    said = [f"{' '.join(map(str, key))} {config}: {reason}" for (key, config), reason in failed.items()]
    return {"done": done, "left": len(jobs) - done, "failed": said, "seconds": round(time.monotonic() - begin, 1)}


def _watch(process: subprocess.Popen, rows: Path, deadline: float, hang_s: float) -> str:
    """Waits for the end of the process. Returns why it was killed, or ""."""
    heard, size = time.monotonic(), -1
    while process.poll() is None:
        time.sleep(0.1)
        now = rows.stat().st_size if rows.exists() else 0
        if now != size:
            heard, size = time.monotonic(), now
        late = time.time() > deadline + GRACE_S
        if late or time.monotonic() - heard > hang_s:
            process.kill()
            process.wait()
            return LATE if late else f"no word for {hang_s:.0f} s"
    return ""


def run_plan(plan: dict, out: Path, environment: dict[str, str]) -> int:
    """Times the plan in a process, and in another one behind each candidate that kills it. Returns how often that happened."""
    plan_file, rows = out / "tune_plan.json", out / "tune_rows.jsonl"
    plan_file.write_text(json.dumps(plan))
    rows.unlink(missing_ok=True)
    command = [*WORKER, str(plan_file), str(rows)]
    for ends in range(RESTARTS + 1):
        process = subprocess.Popen(command, cwd=machine.ROOT, env=environment)
        reason = _watch(process, rows, plan["deadline"], HANG_S)
        if process.returncode == 0 or reason == LATE:
            return ends
        begun, finished = tune_worker.read_rows(rows)
        culprits = begun - set(finished)
        with rows.open("a") as file:
            for item in culprits:
                row = {"failed": reason or f"the process ended with {process.returncode}"}
                file.write(json.dumps({"item": item, "row": row}) + "\n")
        if not culprits and process.returncode != tune_worker.LOST:
            return ends + 1
    return RESTARTS + 1


def named_rows(plan: dict, rows: Path) -> list[dict]:
    """The finished rows with the names of their case and configuration; "usual" says whether it is the usual configuration."""
    cases, (_, finished) = tune_worker.cases(plan["device"]), tune_worker.read_rows(rows)
    named = []
    for index, configs in plan["items"]:
        case, (kernel, arithmetic, width) = cases[index], cases[index].key
        about = {"kernel": kernel, "arithmetic": arithmetic, "width": width, "case": case.name, "shape": list(case.shape)}
        for number, config in enumerate(configs):
            if (index, number) in finished:
                usual = list(config) == list(configs[0])
                named.append(about | {"config": list(config), "usual": usual} | finished[index, number])
    return named


@dataclass(frozen=True)
class Verdict:
    """The best candidate of a key over all cases in which every candidate was tried."""

    key: Key
    usual: Config
    best: Config | None
    gain: float  # geometric mean over the cases
    gains: dict[str, float]  # case -> gain
    spread: float  # of the usual configuration against itself
    finer: dict[str, tuple[Config, float]]  # case -> a much faster configuration, its gain

    @property
    def wins(self) -> bool:
        return (
            self.best is not None
            and self.gain >= max(LEAST_GAIN, 1 + 2 * self.spread)
            and min(self.gains.values()) >= LEAST_ANYWHERE
        )

    def text(self) -> str:
        head = f"{' '.join(map(str, self.key))}: usual {self.usual}, twice it differs by {100 * self.spread:.1f} %"
        if self.best is None:
            return f"{head}; nothing else was timed"
        by_case = ", ".join(f"{name} {gain:.3f}" for name, gain in self.gains.items())
        finer = "".join(f"; {name} alone: {config} {gain:.3f}" for name, (config, gain) in self.finer.items())
        return f"{head}; {'wins' if self.wins else 'best'} {self.best}: {self.gain:.3f}x ({by_case}){finer}"


def _name(case: str, shape) -> str:
    return f"{case} {'x'.join(map(str, shape))}"


def _verdict(key: Key, rows: list[dict], counts: dict[str, int]) -> Verdict:
    """Judges the rows of a key. ``counts``: case -> number of its rows when every candidate was tried."""
    gains: dict[Config, dict[str, float]] = {}
    tried: dict[str, int] = {}
    spread, usual = 0.0, ()
    for row in rows:
        case, config = _name(row["case"], row["shape"]), tuple(row["config"])
        tried[case] = tried.get(case, 0) + 1
        if row["usual"]:
            usual, spread = config, max(spread, abs(row.get("gain", 1.0) - 1))
        elif "gain" in row:
            gains.setdefault(config, {})[case] = row["gain"]
    whole = [case for case, count in tried.items() if count == counts[case]]
    safe = {config: by_case for config, by_case in gains.items() if whole and set(whole) <= set(by_case)}
    means = {config: math.exp(statistics.fmean(math.log(by_case[case]) for case in whole)) for config, by_case in safe.items()}
    best = max(means, key=means.get, default=None)
    mine = {case: gains[best][case] for case in whole} if best else {}
    finer = {}
    for case in mine:
        config = max(safe, key=lambda c: gains[c][case])
        if gains[config][case] >= FINER * max(1.0, mine[case]):
            finer[case] = config, gains[config][case]
    return Verdict(key, usual, best, means.get(best, 0.0), mine, spread, finer)


def verdicts(plan: dict, rows: list[dict]) -> list[Verdict]:
    """One verdict for each key that has rows."""
    cases = tune_worker.cases(plan["device"])
    counts: dict[Key, dict[str, int]] = {}
    for index, configs in plan["items"]:
        counts.setdefault(cases[index].key, {})[_name(cases[index].name, cases[index].shape)] = len(configs)
    of_key = lambda key: [row for row in rows if (row["kernel"], row["arithmetic"], row["width"]) == key]  # noqa: E731
    return [_verdict(key, of_key(key), count) for key, count in counts.items() if of_key(key)]


def entries(found: list[Verdict], arch: int) -> dict[Key, tuple[Config, str]]:
    """key -> (tile, comment) of a tuned file: what the file holds already, what won, and what a winner must not change.

    Kernels that count the logits above a threshold keep the tile that they have now, which was compiled for them. So does the
    sigmoid loss, whose tile would otherwise follow from that of the backward.
    """
    new = {key: (tuple(numbers), "as before") for key, numbers in tuned.table("similarity", arch).items()}
    for verdict in found:
        kernel, arithmetic, width = verdict.key
        if not verdict.wins or kernel == "chunk sigmoid":
            continue
        if kernel == "chunk cross":
            tile = verdict.best if len(verdict.best) > 2 else NO_TILE
            new["wide", arithmetic, 256] = tile, verdict.text().partition(": ")[2]
            continue
        new[verdict.key] = verdict.best, verdict.text().partition(": ")[2]
        if kernel in ("fwd", "one_pass"):
            tile = pick_config(f"{kernel} rank", arch, torch.bfloat16, width)
            new.setdefault((f"{kernel} rank", arithmetic, width), (astuple(tile), "unchanged"))
        if kernel == "bwd":
            sigmoid = "sigmoid", arithmetic, width
            new.setdefault(sigmoid, (usual_config(sigmoid, arch), "unchanged"))
    return new


def tuned_text(new: dict[Key, tuple[Config, str]], about: str) -> str:
    """A file of ``fastssl.kernels.tuned``."""
    lines = [f"    # {comment}\n    {key!r}: {config!r},\n".replace("'", '"') for key, (config, comment) in sorted(new.items())]
    return f'"""Tiles that benchmarks.tune measured.\n\n{about}\n"""\n\n# ruff: noqa: E501\nTABLE = {{\n{"".join(lines)}}}\n'


def _about(found: dict) -> str:
    about = found["machine"]
    versions = ", ".join(f"{name} {about['versions'][name]}" for name in ("python", "torch", "triton") if name in about["versions"])
    return f"{about['name']}, {found['date']}, commit {found['commit']}, {versions}, CUDA {about.get('cuda')}"


def _page(found: dict) -> str:
    """The text of tune.md: a line for each key, and what went wrong."""
    bad = [row for row in found["rows"] if "ms" not in row]
    compiled = found["compile"]
    lines = [*found["verdicts"], f"compiled {compiled['done']} candidates in {compiled['seconds']} s, {compiled['left']} left"]
    lines += [f"dropped {reason}" for reason in compiled["failed"][:20]]
    lines += [f"{len(found['rows'])} rows, {found['left']} left, {found['ends']} processes died, {len(bad)} without a time"]
    lines += [f"{row['kernel']} {row['width']} {row['config']}: {row.get('failed') or row['wrong']}" for row in bad[:20]]
    lines += ["the list of candidates is older than the kernels"] * found["stale"]
    return "".join(f"- {line}\n" for line in lines)


def _plan(device: str, arch: int, candidates: dict, limit: int | None, deadline: float) -> dict:
    """The plan that the timing process reads, with at most ``limit`` candidates of each key."""
    cases, tries = tune_worker.cases(device), {}
    for case in cases:
        usual, *others, again = tune_candidates.to_try(case.key, candidates, arch)
        tries[case.key] = [usual, *others[:limit], again]
    return {"device": device, "arch": arch, "items": plan_items(cases, tries), "deadline": deadline}


def tune(out: Path, device: str, seconds: float, limit: int | None = None) -> dict:
    """Compiles, times and judges on this device, with at most ``limit`` candidates of each key.

    Returns the content of tune.json.
    """
    begin, (arch, num_sms) = time.time(), architecture(device)
    candidates = tune_candidates.read(tune_candidates.path(arch))
    plan = _plan(device, arch, candidates, limit, begin + seconds - GRACE_S - WRITE_S)
    found = {"machine": machine.describe(device), **machine.run_stamp(), "seconds": seconds}
    found["stale"] = tune_candidates.stale(tune_candidates.path(arch))
    found["compile"] = precompile(plan, num_sms, COMPILE_SHARE * seconds, len(os.sched_getaffinity(0)))
    environment = dict(os.environ) | ({} if device == "cuda" else {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""})
    found["ends"] = run_plan(plan, out, environment)
    rows = named_rows(plan, out / "tune_rows.jsonl")
    found |= {"rows": rows, "left": sum(len(configs) for _, configs in plan["items"]) - len(rows)}
    judged = verdicts(plan, rows)
    found["verdicts"] = [verdict.text() for verdict in judged]
    (out / "tune.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / "tune.md").write_text(_page(found))
    if new := entries(judged, arch):
        folder = out / "tuned"
        folder.mkdir(exist_ok=True)
        (folder / f"similarity_sm{arch}.py").write_text(tuned_text(new, _about(found)))
    return found


def main(argv: list[str]) -> int:
    """Runs the command; the exit status is 0 where something was timed, or where the list was written."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune", description=__doc__.partition(":")[0])
    parser.add_argument("--list", action="store_true", help="compile the grid offline and write the candidates; no GPU")
    parser.add_argument("--arch", type=int, default=90, help="architecture that --list compiles for; default 90")
    parser.add_argument("--jobs", type=int, default=1, help="processes of --list, at most one for each of ten keys")
    parser.add_argument("--out", type=Path, metavar="DIR")
    parser.add_argument("--seconds", type=float, default=150.0)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    args = parser.parse_args(argv)
    if args.list:
        file = tune_candidates.path(args.arch)
        tune_candidates.write(tune_candidates.compile_all(args.arch, args.jobs), file)
        print(f"wrote {file}")
        return 0
    if args.out is None:
        parser.error("--out DIR or --list")
    if args.device == "cuda" and not torch.cuda.is_available():
        print("tune: this torch sees no GPU")
        return 2
    arch, _ = architecture(args.device)
    if not tune_candidates.path(arch).exists():
        print(f"tune: {tune_candidates.path(arch)} is missing; python -m benchmarks.tune --list --arch {arch} makes it")
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    found = tune(args.out.resolve(), args.device, args.seconds, None if args.device == "cuda" else 1)
    print((args.out / "tune.md").read_text())
    return 0 if any("ms" in row for row in found["rows"]) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
