"""Times the candidate configurations of the similarity kernels on this GPU:  python -m benchmarks.tune --out tune.json

The kernels ask ``pick_config`` for a configuration at every launch. A plain run shows which questions a shape asks; then each
candidate, neighbours of the usual answer first, answers one question at a time while the others keep their usual answer. A
candidate whose gradient leaves the usual one's is "wrong", one that does not launch (registers, shared memory) "failed". Times
are of forward + backward, in turns with the usual answer, so that a drift of the clock moves both.
"""

import argparse
import dataclasses
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from benchmarks import gate, machine, timing
from benchmarks.registry import WORKS, shape_name
from fastssl.testing.compare import FLOOR, relative_error

KERNELS = ("fastssl.kernels.similarity", "fastssl.kernels.similarity_chunked")
CONFIGS = "fastssl.kernels.similarity_config"
CANDIDATE_NAMES = ("ALL_CONFIGS", "CANDIDATES", "CONFIGS")
SHAPES = (("nt_xent", (32768, 128)), ("nt_xent", (4096, 128)), ("info_nce", (16384, 128)))


def _walk(found) -> Iterable:
    """The dataclass instances in nested lists, tuples and mappings."""
    if dataclasses.is_dataclass(found):
        yield found
    elif isinstance(found, Mapping):
        for value in found.values():
            yield from _walk(value)
    elif isinstance(found, (list, tuple, set, frozenset)):
        for value in found:
            yield from _walk(value)


def candidates(module) -> list:
    """The configurations that a module offers under the first of ``CANDIDATE_NAMES``, each once."""
    for name in CANDIDATE_NAMES:
        if offered := list(dict.fromkeys(_walk(getattr(module, name, None)))):
            return offered
    return []


def neighbours(config) -> list:
    """Configurations one step away: one block or warp count halved or doubled, or one stage less or more."""
    steps = []
    for part in dataclasses.fields(config):
        value = getattr(config, part.name)
        if "stages" in part.name:
            options, least = (value - 1, value + 1), 1
        else:
            options, least = (value // 2, value * 2), 16 if "block" in part.name else 1
        steps += [dataclasses.replace(config, **{part.name: v}) for v in options if v >= least]
    return steps


def as_json(config) -> object:
    return dataclasses.asdict(config) if dataclasses.is_dataclass(config) else repr(config)


def question(args: tuple, kwargs: dict) -> str:
    return repr((args, sorted(kwargs.items())))


@contextmanager
def answering(modules: list, answer):
    """Every module's ``pick_config`` replaced by ``answer(original, args, kwargs)``."""
    originals = [module.pick_config for module in modules]
    for module, original in zip(modules, originals, strict=True):
        module.pick_config = lambda *args, _original=original, **kwargs: answer(_original, args, kwargs)
    try:
        yield
    finally:
        for module, original in zip(modules, originals, strict=True):
            module.pick_config = original


def questions_of(modules: list, run) -> dict[str, object]:
    """question -> usual answer, of one call of ``run``."""
    asked: dict[str, object] = {}

    def record(original, args, kwargs):
        found = original(*args, **kwargs)
        asked[question(args, kwargs)] = found
        return found

    with answering(modules, record):
        run()
    return asked


def _forced(asked: str, candidate):
    return lambda original, args, kwargs: candidate if question(args, kwargs) == asked else original(*args, **kwargs)


@dataclasses.dataclass(frozen=True)
class Trial:
    """Forward + backward of one case, and its gradients with the usual configurations."""

    modules: list
    run: Callable
    inputs: dict[str, torch.Tensor]
    grads: dict[str, torch.Tensor]
    device: str


def try_candidate(trial: Trial, asked: str, candidate, rounds: int = 5) -> dict:
    """{"config", "ms", "usual_ms"} or {"config", "failed" | "wrong": reason}."""
    modules, run, inputs, device = trial.modules, trial.run, trial.inputs, trial.device
    row: dict = {"config": as_json(candidate)}
    try:
        with answering(modules, _forced(asked, candidate)):
            run()
            worst = max(relative_error(t.grad.cpu(), trial.grads[name]) for name, t in inputs.items())
            tolerance = 4 * FLOOR[next(iter(inputs.values())).dtype]
            if not worst <= tolerance:
                return row | {"wrong": f"gradient is {worst:.1e} from the usual configuration's, over {tolerance:.1e}"}
            run()
        mine, usual = [], []
        for _ in range(rounds):
            with answering(modules, _forced(asked, candidate)):
                mine.append(timing.once_ms(run, device, 2))
            usual.append(timing.once_ms(run, device, 2))
    except Exception as error:  # a configuration that does not compile or launch is a result
        return row | {"failed": f"{type(error).__name__}: {str(error)[:160]}"}
    return row | {"ms": timing.summarize(mine).ms, "usual_ms": timing.summarize(usual).ms}


def tune(modules: list, configs: list, work, inputs: dict[str, torch.Tensor], deadline: float) -> list[dict]:
    """Rows for each question that forward + backward of the work asks, fastest candidate first."""
    inputs = gate.leaves(inputs)
    first = next(iter(inputs.values()))
    run = partial(gate.step, partial(work.case.ours, **work.constants), inputs)
    found: list[dict] = []
    asked = questions_of(modules, run)
    for question_asked, usual in asked.items():
        run()
        grads = {name: t.grad.detach().cpu().clone() for name, t in inputs.items()}
        trial = Trial(modules, run, inputs, grads, first.device.type)
        order = [c for c in dict.fromkeys([*neighbours(usual), *configs]) if c != usual]
        now = time.monotonic()
        stop = now + (deadline - now) / (len(asked) - len(found))
        rows = [try_candidate(trial, question_asked, c) for c in order if time.monotonic() < stop]
        rows.sort(key=lambda row: row.get("ms", float("inf")))
        found.append(
            {
                "work": work.name,
                "shape": list(first.shape),
                "question": question_asked,
                "usual": as_json(usual),
                "candidates": rows,
                "not_tried": len(order) - len(rows),
            }
        )
    return found


def best_line(row: dict) -> str:
    """One line for the log: the usual configuration against the best candidate."""
    timed = [c for c in row["candidates"] if "ms" in c]
    head = f"{row['work']} {shape_name(row['shape'])} {row['question']}: usual {row['usual']}"
    if not timed:
        return f"{head}; no other candidate ran ({len(row['candidates'])} tried)"
    gain = timed[0]["usual_ms"] / timed[0]["ms"]
    return f"{head}; best other {timed[0]['config']}: {timed[0]['ms']:.3f} ms, {gain:.3f}x as fast as the usual"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune", description=__doc__.partition(":")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=90.0)
    args = parser.parse_args(argv)
    deadline = time.monotonic() + args.seconds
    if not torch.cuda.is_available():
        print("tune: this torch sees no GPU")
        return 2
    modules = [m for m in map(importlib.import_module, KERNELS) if callable(getattr(m, "pick_config", None))]
    configs = candidates(importlib.import_module(CONFIGS))
    found = {"machine": machine.describe("cuda"), **machine.run_stamp(), "rows": []}
    if not configs or not modules:
        found["reason"] = f"{CONFIGS} offers none of {', '.join(CANDIDATE_NAMES)}, or no kernel module uses pick_config"
        print(found["reason"])
    else:
        share = (deadline - time.monotonic()) / len(SHAPES)
        for index, (name, shape) in enumerate(SHAPES):
            stop = deadline - share * (len(SHAPES) - 1 - index)
            work = WORKS[name]
            rows = tune(modules, configs, work, work.case.inputs(shape, dtype=torch.bfloat16, device="cuda"), stop)
            found["rows"] += rows
            args.out.write_text(json.dumps(found, indent=1) + "\n")
            print("\n".join(map(best_line, rows)), flush=True)
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
