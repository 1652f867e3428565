"""The tuner: a measured tile reaches the library, only a sure one wins, a candidate that kills its process costs only itself."""

import json
import os
import subprocess
import sys
import time
from dataclasses import astuple
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from benchmarks.tune import __main__ as tune
from benchmarks.tune import candidates as tune_candidates
from benchmarks.tune import cases as tune_cases
from benchmarks.tune import worker as tune_worker
from benchmarks.tune.cases import CASES, Case
from fastssl.kernels import similarity_chunked, similarity_forward, similarity_wide, tuned
from fastssl.kernels.tiles import config as tile_configs
from fastssl.kernels.tiles import plan
from fastssl.kernels.tiles.config import TileConfig, pick_config
from tests.support.rotation import every

ROOT = Path(__file__).parents[2]
KEY, WIDE = ("fwd", "16-bit", 128), ("wide", "16-bit", 256)
USUAL, FAST, SLOW = (128, 128, 8, 3, 1), (64, 128, 4, 3, 2), (64, 64, 4, 2, 3)


# --- measured tiles in the library ---------------------------------------------------------------------------------------------


def _clear():
    tuned.table.cache_clear()
    tile_configs.tuned_config.cache_clear()
    tile_configs._measured_slower.cache_clear()
    pick_config.cache_clear()
    for name in [name for name in sys.modules if name.startswith("fastssl.kernels.tuned.")]:
        del sys.modules[name]


@pytest.fixture
def tuned_folder(tmp_path, monkeypatch):
    """An empty folder in the place of fastssl/kernels/tuned."""
    monkeypatch.setattr(tuned, "__path__", [str(tmp_path)])
    _clear()
    yield tmp_path
    monkeypatch.undo()
    _clear()


def _pick(kernel, arch=90, width=128, dtype=torch.bfloat16):
    return pick_config(kernel, arch, dtype, width)


def test_library_takes_measured_tiles_of_its_own_architecture(tuned_folder):
    before = {(kernel, arch): _pick(kernel, arch) for kernel in ("fwd", "fwd rank", "bwd") for arch in (80, 90, 100)}
    wide = _pick("one_pass rank", width=256)
    new = {KEY: (FAST, "1.1x"), ("one_pass", "16-bit", 256): (SLOW, "1.2x")}
    (tuned_folder / "similarity_sm90.py").write_text(tune.tuned_text(new, "NVIDIA H200"))
    _clear()
    assert tuned.architectures("similarity") == (90,) and tuned.architectures("other") == ()
    assert _pick("fwd") == TileConfig(*FAST) == _pick("fwd", width=65) == _pick("fwd", dtype=torch.float16)
    assert _pick("fwd rank") == TileConfig(*FAST), "nothing says that this one spills when it counts"
    assert _pick("one_pass rank", width=256) == wide, "the table's tile for counting comes before a measured one that is not"
    assert _pick("fwd", dtype=torch.float32) != TileConfig(*FAST)
    assert {key: _pick(*key) for key in before if key[0] == "bwd" or key[1] != 90}.items() <= before.items()
    assert ("fwd", 90, "16-bit", 128, TileConfig(*FAST)) in tile_configs._tuned_configs()


def test_every_tuned_file_is_one_that_the_tests_compile():
    known = set(tile_configs.ALL_CONFIGS)
    for arch in tuned.architectures("similarity"):
        for (kernel, arithmetic, width), numbers in tuned.table("similarity", arch).items():
            assert not numbers or (kernel, tile_configs._family(arch), arithmetic, width, TileConfig(*numbers)) in known
    assert len(known) >= 60


def test_unknown_widths_are_refused_as_before():
    with pytest.raises(KeyError):
        _pick("fwd", dtype=torch.float32, width=256)


# --- what wins -----------------------------------------------------------------------------------------------------------------


def _rows(case, gains, key=KEY, n=8192):
    """gains: configuration -> gain, or a reason; the usual one first."""
    about = dict(zip(("kernel", "arithmetic", "width"), key, strict=True), case=case, shape=[n, n, key[2]])
    rows = []
    for config, gain in gains:
        told = {"ms": 1 / gain, "usual_ms": 1.0, "gain": gain} if isinstance(gain, float) else {"failed": gain}
        rows.append(about | {"config": list(config), "usual": config == USUAL} | told)
    return rows


def _judge(*tables, counts=None):
    rows = [row for n, table in enumerate(tables) for row in _rows("nt_xent", table, n=512 << n)]
    counts = counts or {f"nt_xent {512 << n}x{512 << n}x128": len(table) for n, table in enumerate(tables)}
    return tune._verdict(KEY, rows, counts)


def test_a_clear_winner_wins_and_noise_does_not():
    clear = _judge([(USUAL, 1.01), (FAST, 1.10), (SLOW, 0.8), (USUAL, 0.995)], [(USUAL, 1.0), (FAST, 1.21), (SLOW, 1.0)])
    assert clear.wins and clear.best == FAST and clear.usual == USUAL
    assert clear.gain == pytest.approx((1.10 * 1.21) ** 0.5) and clear.spread == pytest.approx(0.01)
    assert not _judge([(USUAL, 1.0), (FAST, 1.02)]).wins, "under the least gain"
    assert not _judge([(USUAL, 1.06), (FAST, 1.10)]).wins, "the usual one differs from itself by half of that"
    assert not _judge([(USUAL, 1.0), (FAST, 1.3)], [(USUAL, 1.0), (FAST, 0.9)]).wins, "slower at another shape"


def test_what_failed_or_was_not_tried_everywhere_does_not_win():
    table = [(USUAL, 1.0), (FAST, 1.5), (SLOW, 1.1)]
    died = _judge(table, [(USUAL, 1.0), (FAST, "the process ended with -11"), (SLOW, 1.2)])
    assert died.best == SLOW and died.wins
    late = _judge(table, [(USUAL, 1.0), (FAST, 0.5)], counts={"nt_xent 512x512x128": 3, "nt_xent 1024x1024x128": 3})
    assert late.best == FAST and set(late.gains) == {"nt_xent 512x512x128"}, "a shape that was cut off counts for none"
    nothing = _judge([(USUAL, 1.0), (FAST, "spills")])
    assert nothing.best is None and not nothing.wins and "nothing else" in nothing.text()


def test_a_shape_that_wants_another_tile_is_named():
    found = _judge([(USUAL, 1.0), (FAST, 1.0), (SLOW, 1.3)], [(USUAL, 1.0), (FAST, 1.5), (SLOW, 0.9)])
    assert found.best == FAST and found.finer == {"nt_xent 512x512x128": (SLOW, 1.3)}
    assert str(SLOW) in found.text() and "512x512" in found.text()


def _winner(key, best):
    return tune.Verdict(key, USUAL, best, 1.2, {"a": 1.2}, 0.0, {})


def test_entries_keep_what_winning_must_not_change(tuned_folder):
    (tuned_folder / "similarity_sm90.py").write_text(tune.tuned_text({("cross", "16-bit", 256): (FAST, "")}, "earlier"))
    _clear()
    backward, sigmoid = ("bwd", "16-bit", 128), ("sigmoid", "16-bit", 128)
    counting, usual_sigmoid = _pick("fwd rank"), tune_cases.usual_config(sigmoid, 90)
    found = [_winner(KEY, FAST), _winner(backward, SLOW), _winner(("chunk cross", "16-bit", 512), (4096, 24))]
    expected = {KEY: FAST, ("fwd rank", "16-bit", 128): astuple(counting), backward: SLOW, sigmoid: usual_sigmoid}
    expected[WIDE] = tune_cases.NO_TILE  # chunks won
    new = tune.entries(found, 90)
    assert {key: config for key, (config, _) in new.items()} == expected | {("cross", "16-bit", 256): FAST}
    assert tune.entries([*found, _winner(sigmoid, FAST)], 90)[sigmoid][0] == FAST
    assert tune.entries([_winner(("chunk cross", "16-bit", 512), SLOW)], 90)[WIDE][0] == SLOW
    (tuned_folder / "similarity_sm90.py").write_text(tune.tuned_text(new, "now"))
    _clear()
    assert _pick("fwd") == TileConfig(*FAST) and _pick("fwd rank") == counting
    half = torch.zeros(4096, 512, dtype=torch.bfloat16)
    assert not similarity_wide.takes(half, half) and tune_cases.usual_config(("chunk cross", "16-bit", 512), 90) == (2048, 23)
    assert tile_configs.tuned_config("sigmoid", 90, torch.float16, 65) == TileConfig(*usual_sigmoid)


# --- candidates ----------------------------------------------------------------------------------------------------------------


def test_listed_candidates_fit_their_architecture():
    found = tune_candidates.read(tune_candidates.path(90))
    keys = {case.key for case in CASES if not case.chunked}
    assert set(found) == keys and sum(map(len, found.values())) >= 4 * len(keys)
    for key, lines in found.items():
        assert set(lines) <= set(tune_candidates.grid(key))
        for config, line in lines.items():
            assert line["registers"] <= 255 and line["shared"] <= 227 * 1024 and line["programs"] >= config[4] >= 1
            assert line["programs"] * 32 * config[2] * line["registers"] <= 65536


def test_every_key_is_tried_against_its_usual_configuration_twice():
    for key in {case.key for case in CASES}:
        usual, *others, again = tune_candidates.to_try(key, tune_candidates.read(tune_candidates.path(90)), 90)
        assert usual == again == tune_cases.usual_config(key, 90) and usual not in others and len(set(others)) == len(others) >= 2


def test_forced_changes_one_kernel_only():
    kernels = ("fwd", "fwd plain", "bwd", "bwd plain")
    ask = lambda: [plan.pick_config(kernel, 90, torch.bfloat16, 128) for kernel in kernels]  # noqa: E731
    usual, chunk = ask(), similarity_chunked.chunk_shape(16384, 16384)
    with tune_cases.forced("fwd plain", SLOW):
        assert ask() == [TileConfig(*SLOW), TileConfig(*SLOW), *usual[2:]]
    assert ask() == usual and TileConfig(*SLOW) not in usual
    half = torch.zeros(4096, 512, dtype=torch.bfloat16)
    with tune_cases.forced("chunk cross", (4096, 22)):
        rows, columns = similarity_chunked.chunk_shape(16384, 16384)
        assert rows == 4096 and rows * columns == 1 << 22 and not similarity_wide.takes(half, half)
    with tune_cases.forced("chunk cross", SLOW):
        tiles = [plan.pick_config(kernel, 90, torch.bfloat16, 512) for kernel in ("wide", "wide two")]
        assert tiles == [TileConfig(*SLOW), tile_configs.pick_config("wide two", 90, torch.bfloat16, 512)]
    assert similarity_wide.takes(half, half)
    assert similarity_chunked.chunk_shape(16384, 16384) == chunk == (2048, 4096)


def test_the_forward_of_nt_xent_is_either_kernel():
    ids = torch.arange(256, dtype=torch.int32)
    ask = lambda: similarity_forward.pick_triangle(256, ids, 90, torch.bfloat16, 128, "ieee")  # noqa: E731
    key = "triangle plain", "16-bit", 128
    usual = ask()
    assert astuple(usual) == tune_cases.usual_config(key, 90) and () in tune_candidates.to_try(key, {}, 90)
    for kernel, config, found in (
        ("triangle plain", SLOW, TileConfig(*SLOW)),
        ("triangle plain", (), None),
        ("fwd plain", SLOW, None),
    ):
        with tune_cases.forced(kernel, config):
            assert ask() == found
    assert ask() == usual


def test_a_plain_forward_that_wins_is_taken(tuned_folder):
    key = "triangle plain", "16-bit", 128
    (tuned_folder / "similarity_sm90.py").write_text(tune.tuned_text({key: ((), "1.1x")}, "NVIDIA H200"))
    _clear()
    assert tune.entries([_winner(key, ())], 90)[key][0] == () and tile_configs._tuned_configs() == []
    assert tune_cases.usual_config(key, 90) == ()
    assert _pick("triangle plain").block_m == 256, "its tile is still known"


_SAME_CACHE = """
import sys
from unittest import mock
import torch
from triton import knobs
from triton.runtime import driver
from triton.runtime.jit import JITFunction
from benchmarks.tune import candidates as tune_candidates, cases as tune_cases
from fastssl.testing import compile as offline

key = "fwd plain", "16-bit", 128
config = next(iter(tune_candidates.read(tune_candidates.path(90))[key]))
case = next(case for case in tune_cases.CASES if case.key == key)
with offline.offline(90, 132) as found:
    assert tune_candidates.judge(found, case, config), "a listed candidate spills"
    assert not tune_candidates.judge(found, case, (64, 64, 4, 4, 4)), "four programs do not fit in an SM"

hits, launched = [], []
knobs.compilation.listener = lambda *, cache_hit, **_: hits.append(cache_hit)


class Device(offline._Device):
    class launcher_cls:
        def __init__(self, src, metadata): ...
        def __call__(self, *args): launched.append(args[:3])

    class utils:
        get_device_properties = staticmethod(lambda device: {"max_shared_mem": 232448})
        load_binary = staticmethod(lambda *args: (None, None, 0, 0, 1024))


def launch(self, *args, grid, warmup, **kwargs):
    self.device_caches.clear()
    return run(self, *args, grid=grid, warmup=warmup, **kwargs)


run = JITFunction.run
driver.set_active(Device(90))
patched = mock.patch.object(offline.device, "CPU", offline.DeviceProperties(90, 132))
with patched, mock.patch.object(JITFunction, "run", launch):
    call = case.build(*case.shape, torch.bfloat16, "cpu")
    with tune_cases.forced("fwd", config):
        call()
assert launched and len(hits) == len(launched) and all(hits), (launched, hits)
"""


@every(3)
def test_offline_compiling_fills_the_cache_that_a_launch_reads(tmp_path):
    """And a listed candidate survives again, where a tile too large for its programs does not."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", _SAME_CACHE], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


# --- the process that times ----------------------------------------------------------------------------------------------------


def _case(outputs):
    """A case whose outputs are a function of the chunk's rows, to stand in for a kernel."""
    build = lambda n, m, d, dtype, device: lambda: outputs(similarity_chunked.chunk_shape(n, m)[0])  # noqa: E731
    return Case("chunk cross", "stand-in", (8192, 65536, 512), build)


def test_wrong_moving_and_failing_candidates_get_no_time():
    runs = iter(range(100))

    def outputs(rows):
        if rows == 8192:
            raise RuntimeError("out of resources: shared memory")
        lse = torch.full((8,), {1024: 1.0001, 4096: 1.0 + 1e-6 * next(runs)}.get(rows, 1.0))
        return {"lse": lse, "dx": torch.ones(8, dtype=torch.float16)}

    case = _case(outputs)
    usual = tune_worker.prepare(case, "cpu", 90)
    found = {rows: tune_worker.measure(case, usual, (rows, 23), "cpu") for rows in (512, 1024, 2048, 4096, 8192)}
    assert found[512]["gain"] > 0 and found[2048]["ms"] > 0
    assert "over 2.0e-05" in found[1024]["wrong"] and "differs" in found[4096]["wrong"] and "out of res" in found[8192]["failed"]
    assert not any("ms" in found[rows] for rows in (1024, 4096, 8192))


_DEADLY = """
import os, sys
from benchmarks.tune import worker as tune_worker

lost = []


def measure(case, usual, config, device):
    if config == (1024, 22):
        os._exit(9)
    if config == (4096, 22):
        lost.append(config)
    if case.shape[0] == 48:
        raise RuntimeError("usual")
    return {"ms": 1.0, "usual_ms": 1.0, "gain": 1.0, "spread": 0.0}


tune_worker.measure = measure
tune_worker.prepare = lambda *args: None
tune_worker.lost = lambda device: bool(lost)
sys.exit(tune_worker.main(*sys.argv[1:]))
"""


@every(3)
def test_a_candidate_that_kills_the_process_costs_only_itself(tmp_path, monkeypatch):
    chunk = next(i for i, case in enumerate(tune_cases.TINY) if case.chunked)
    items = [(chunk, [(2048, 23), (1024, 22), (4096, 22), (1024, 23)]), (0, [USUAL, FAST])]
    plan = {"device": "cpu", "arch": 90, "items": items, "deadline": time.time() + 600}
    monkeypatch.setattr(tune, "WORKER", [sys.executable, "-c", _DEADLY])
    assert tune.run_plan(plan, tmp_path, dict(os.environ)) == 2, "one exit, one context lost, then to the end"
    rows = {(row["kernel"], tuple(row["config"])): row for row in tune.named_rows(plan, tmp_path / "tune_rows.jsonl")}
    assert "ended with 9" in rows["chunk cross", (1024, 22)]["failed"]
    assert rows["chunk cross", (2048, 23)]["usual"] and rows["chunk cross", (1024, 23)]["ms"] == 1.0
    assert "usual" in rows["fwd plain", USUAL]["failed"] and ("fwd plain", FAST) not in rows


def test_a_process_that_says_nothing_is_ended(tmp_path):
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    silent = subprocess.Popen(sleeper)
    assert "no word" in tune._watch(silent, tmp_path / "rows", time.time() + 600, hang_s=0.5) and silent.returncode != 0
    late = subprocess.Popen(sleeper)
    assert tune._watch(late, tmp_path / "rows", time.time() - 20, hang_s=60) == tune.LATE and late.returncode != 0


def test_plan_visits_every_key_before_any_twice():
    tries = {case.key: [USUAL] for case in CASES}
    order = [CASES[index] for index, _ in tune.plan_items(CASES, tries)]
    keys = len({case.key for case in CASES})
    assert len({case.key for case in order[:keys]}) == keys and sorted(map(CASES.index, order)) == list(range(len(CASES)))


def test_rehearsal_compiles_times_and_judges_without_a_gpu(tmp_path):
    assert tune.main(["--out", str(tmp_path), "--device", "cpu", "--seconds", "900"]) == 0
    found = json.loads((tmp_path / "tune.json").read_text())
    tiles = [row for row in found["rows"] if not row["kernel"].startswith("chunk")]
    assert found["compile"]["left"] == 0 and found["compile"]["failed"] == [] and found["ends"] == 0 and found["left"] == 0
    assert tiles and all(row["ms"] > 0 for row in found["rows"]), "every launch was right and was timed"
    assert {row["usual"] for row in tiles} == {True, False}
    assert len(found["verdicts"]) == len({case.key for case in tune_cases.TINY})


def test_refusals(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.main(["--out", str(tmp_path)]) == 2 and "no GPU" in capsys.readouterr().out
    monkeypatch.setattr(tune_candidates, "path", lambda arch: tmp_path / f"candidates_sm{arch}.json")
    assert tune.main(["--out", str(tmp_path), "--device", "cpu"]) == 2 and "--list --arch 90" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        tune.main([])
