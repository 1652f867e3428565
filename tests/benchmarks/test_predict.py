"""What ``benchmarks.tune.predict`` reads from machine code, and that its table is of today's kernels."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from benchmarks.core import predicted
from benchmarks.core.registry import WORKLOADS
from benchmarks.tune import predict
from benchmarks.tune.candidates import kernels_digest

ROOT = Path(__file__).parents[2]
#: Two loops; the second has products, a region that compares ids, and one that takes maxima behind a jump without condition.
CODE = [
    "MOV R1, RZ",
    "IADD3 R1, R1, 0x1, RZ",
    "@P0 BRA 0x10",
    "HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24",
    "HGMMA.64x64x16.F32.BF16 R24, R100, gdesc[UR8], R24",
    "@P1 BRA 0x0300",
    *["FSEL R2, R2, -INF, P2"] * 40,
    *["MOV R9, R9"] * 2,
    "MUFU.EX2 R3, R3",
    "FADD R4, R4, R3",
    "BRA 0x0600",
    *["FMNMX R5, R5, R6, !PT"] * 45,
    "LDS R7, [R8]",
    "@!P3 BRA 0x30",
    "EXIT",
]


def listing(code):
    return "\n".join(f"        /*{16 * at:04x}*/                   {line} ;          /* 0x0 */" for at, line in enumerate(code))


def test_the_usual_way_leaves_out_ids_and_maxima():
    code = predict.parse(listing(CODE))
    assert len(code) == len(CODE) and code[3].name == "HGMMA.64x128x16.F32.BF16" and code[2].jump() == 0x10
    way = predict.usual_way(code)
    opcodes = [i.opcode for i in way]
    assert opcodes.count("HGMMA") == 2 and opcodes.count("MUFU") == 1 and opcodes.count("FMNMX") == opcodes.count("FSEL") == 0
    assert "LDS" in opcodes and opcodes[0] == "HGMMA"


def test_operands_and_columns_pass_through_shared_memory():
    way = predict.usual_way(predict.parse(listing(CODE)))
    assert predict.products(way) == (64 + 32, 32 * 128 + 2048 + 32 * 64)
    units = predict.clocks(way, 8, 1280)
    assert units["matrix"] == 2 * 96 and units["shared"] == (2 * (32 * 128 + 2048 + 32 * 64) + 1280) / 128


def test_programs_share_the_time_that_one_waits():
    units = {"matrix": 1000.0, "shared": 900.0, "exp": 800.0, "issue": 400.0, "fma": 10.0, "other": 10.0, "L2": 900.0}
    assert predict.tile_clocks(units, 1) == (pytest.approx(1880.0), "waiting")
    assert predict.tile_clocks(units, 2) == (1000.0, "matrix")
    assert predict.tile_clocks(units | {"shared": 1200.0}, 1) == (pytest.approx(2080.0), "waiting")
    assert predict.tile_clocks(units | {"L2": 2000.0}, 2) == (2000.0, "L2")
    assert predict.tile_clocks(units | {"exp": 1500.0}, 4) == (1500.0, "exp")


def test_code_without_products_is_refused():
    with pytest.raises(ValueError, match="no loop with matrix products"):
        predict.usual_way(predict.parse(listing(CODE[:3])))


def test_the_table_is_of_todays_kernels():
    found = json.loads(predicted.PATH.read_text())
    assert found["kernels"] == kernels_digest(), "a kernel changed: python -m benchmarks.tune.predict --write"
    for row in found["rows"]:
        assert row["clocks"]["matrix"] > 0
        if row["kernel"].startswith("wide"):
            assert row["slice"] >= row["clocks"]["matrix"] and row["epilogue"] > 0
        else:
            assert 0 < row["share"] <= 1 and row["programs"] >= 1


def test_every_loss_has_a_prediction_above_its_products():
    for workload in (w for w in WORKLOADS.values() if w.kind == "loss"):
        for shape in workload.gpu:
            assert workload.predicted_ms(shape) > 1e3 * 2 * workload.sweep_flops(shape) / 790e12, (workload.name, shape)


def test_a_kernel_is_read_from_its_own_machine_code():
    """In a process of its own, where Triton compiles: the exponentials of a tile are its logits."""
    text = (
        "import torch; from benchmarks.core import predicted; from benchmarks.tune import cases as t, predict\n"
        "from fastssl.testing.compile import offline\n"
        "case = next(c for c in t.CASES if c.key == ('fwd plain', '16-bit', 128))\n"
        "config = t.usual_config(case.key, 90)\n"
        "with offline(90, 132) as found, t.without_contents(), t.forced('fwd plain', config):\n"
        "    case.build(*case.shape, torch.bfloat16, 'cpu')()\n"
        "kernel = next(k for name, k in found if name == t.FUNCTIONS['fwd'])\n"
        "row = predict.row_of(kernel, 'fwd plain', config, 128)\n"
        "assert row['clocks']['exp'] == config[0] * config[1] // 16, row\n"
        "assert row['clocks']['matrix'] == 2 * config[0] * config[1] * 128 / predicted.MATRIX_FLOP, row\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", text], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
