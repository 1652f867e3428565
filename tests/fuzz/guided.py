"""Calls of what takes indices, whose sizes, strides, dtypes and indices libFuzzer chooses, led by what it reaches in our Python.

python -m tests.fuzz.guided --minutes 5                                  needs ``pip install atheris``
python -m tests.fuzz.guided --minutes 5 --only gather_tokens word_pairs  these
python -m tests.fuzz.guided --input HEX                                  one call, without atheris

Each call is judged as those of ``python -m tests.fuzz``: refused with a message, or served with the right result. The process of a
call that kills it is counted as a crash, and another one goes on.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import os
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path

NAMES = (
    "mask_ids", "random_masking", "gather_tokens", "embed_visible", "restore_tokens", "masked_patch_loss", "masked_latent_loss",
    "tube_mask", "block_mask", "multi_block_mask", "span_mask", "mask_tokens", "corrupt_spans", "queue_push_", "word_pairs",
    "sampled_info_nce", "nce", "negative_sampling", "sup_con", "similarity_lse", "info_nce", "siglip_loss", "clip_loss",
    "nearest_neighbor", "triplet_batch", "soft_nearest_neighbor", "lifted_structured", "contrastive_pairs",
)  # fmt: skip
MEMORY = 8 << 30  # address space of a child above what it has at its start
LONGEST, PATIENCE = 200, 30  # bytes of an input; seconds of a call
COUNTS = ("served", "refused", "memory", "judged")


def judged(names: tuple[str, ...] | list[str], data: bytes):
    """The case that an input chooses, and the verdict on its call."""
    from .cases import CASES
    from .judge import judge

    name = names[data[0] % len(names)] if data else names[0]
    case = next(case for case in CASES if case.name == name)
    return case, judge(case, data[1:], len(data))


def _said(names, data: bytes) -> list[tuple[str, str, str, str]]:
    from .run import describe

    case, verdict = judged(names, data)
    return [(case.name, kind, what, describe(case, data[1:], len(data))) for kind, what in verdict.faults]


def _child(names, folder: Path, seconds: float, seed: int, counts) -> None:
    """Runs until the time is over, and ends this process."""
    import atheris

    soft = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (soft, soft))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def target(data: bytes) -> None:
        (folder / "last").write_bytes(data)
        _, verdict = judged(names, data)
        counts[COUNTS.index(verdict.kind)] += 1
        counts[COUNTS.index("judged")] += verdict.judged
        if verdict.faults:
            with (folder / "faults").open("a") as file:
                file.write(json.dumps(data.hex()) + "\n")

    words = [f"-max_total_time={max(1, round(seconds))}", f"-max_len={LONGEST}", "-len_control=0", f"-timeout={PATIENCE}"]
    words += [f"-artifact_prefix={folder}/", "-rss_limit_mb=0", f"-seed={seed}", "-print_final_stats=1", "-verbosity=1"]
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    atheris.Setup([sys.argv[0], *words, str(folder / "corpus")], target)
    atheris.Fuzz()


def _run(names, folder: Path, minutes: float, seed: int) -> int:
    """How many calls were at fault or crashed."""
    import torch

    counts, crashes, until = torch.zeros(len(COUNTS), dtype=torch.int64).share_memory_(), [], time.monotonic() + 60 * minutes
    (folder / "corpus").mkdir()
    while (left := until - time.monotonic()) > 1:
        if (pid := os.fork()) == 0:
            try:
                _child(names, folder, left, seed + len(crashes), counts)
            finally:
                os._exit(1)
        if status := os.waitpid(pid, 0)[1]:
            crashes.append(((folder / "last").read_bytes().hex(), status))
    found = [json.loads(line) for line in (folder / "faults").read_text().splitlines()] if (folder / "faults").exists() else []
    kinds = {}
    for text in found:
        for fault in _said(names, bytes.fromhex(text)):
            kinds.setdefault((fault[0], fault[1], fault[2][:60]), []).append((text, fault))
    for several in kinds.values():
        text, (name, kind, what, call) = min(several, key=lambda each: len(each[0]))
        print(f"{name}: {kind} [{len(several)}x] --input {text}: {what}\n    {call}")
    for text, status in crashes:
        print(f"crash: the process ended with {status} --input {text}")
    shown = ", ".join(f"{int(count)} {name}" for name, count in zip(COUNTS, counts, strict=True))
    reached = len(list((folder / "corpus").iterdir()))
    print(f"{len(names)} functions, {int(counts[:3].sum())} calls: {shown}; {reached} inputs that reached something new")
    print(f"{len(crashes)} crashes, {len(found)} calls at fault of {len(kinds)} kinds", flush=True)
    return len(crashes) + len(found)


def main() -> int:
    how = {"description": __doc__, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.guided", **how)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--only", nargs="+", default=list(NAMES), choices=NAMES, metavar="NAME", help="functions")
    parser.add_argument("--seed", type=int, default=1, help="of libFuzzer")
    parser.add_argument("--input", metavar="HEX", help="this call alone, with what is said about it")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.input is None and importlib.util.find_spec("atheris") is None:
        parser.error("needs atheris, which brings libFuzzer: pip install atheris")
    if options.input is None:
        import atheris

        with contextlib.redirect_stderr(io.StringIO()), atheris.instrument_imports(include=["fastssl"]):
            from . import cases  # noqa: F401
    import torch

    torch.set_num_threads(1)
    if options.input is not None:
        data = bytes.fromhex(options.input)
        faults = _said(options.only, data)
        print(*judged(options.only, data), *faults, sep="\n")
        return 1 if faults else 0
    with tempfile.TemporaryDirectory() as folder:
        return 1 if _run(options.only, Path(folder), options.minutes, options.seed) else 0


if __name__ == "__main__":
    sys.exit(main())
