"""What the CPU can do at best: which units are measured, and which one a dtype is compared with. No rate is judged."""

import math

import pytest
import torch

from fastssl import info, peaks
from fastssl.ops._register import _C

needs_cpp = pytest.mark.skipif(_C is None, reason="C++ kernels are not built")


@needs_cpp
def test_every_instruction_set_and_every_16_bit_unit_is_named():
    units, floats = _C.peak_units(), [name for name in _C.isas() if name not in _C.units()]
    assert [unit for dtype, unit in units if dtype == "float32"] == floats
    of_16_bits = {("bfloat16", "avx512_bf16"), ("float16", "avx512_fp16"), ("bfloat16", "amx_bf16")}
    assert set(units) - {("float32", name) for name in floats} <= {each for each in of_16_bits if each[1] in _C.units()}
    with pytest.raises(ValueError, match=r"peak_flops: expected one of float32 by .*, got int8 by mmx"):
        _C.peak_flops("int8", "mmx")


@needs_cpp
def test_linux_says_the_same_about_the_16_bit_units():
    flags = {"avx512_bf16", "avx512_fp16", "amx_bf16"}  # amx_fp16 has no name there
    try:
        with open("/proc/cpuinfo") as file:
            told = next(line for line in file if line.startswith("flags")).split()
    except (OSError, StopIteration):
        pytest.skip("this system does not tell")
    assert flags & set(told) == flags & set(_C.units())


@needs_cpp
def test_info_says_how_each_dtype_is_multiplied(isa):
    (line,) = [line for line in info.report().splitlines() if line.startswith("products ")]
    assert ("bfloat16 in pairs" in line) == (isa == "avx512_bf16") and "float16 in float32" in line


@needs_cpp
def test_info_measures_when_asked_and_not_before(capsys, monkeypatch):
    monkeypatch.setattr(peaks, "_ARRAY_BYTES", 1 << 20)
    info.main([])
    assert "at best" not in capsys.readouterr().out
    info.main(["--measure"])
    out = capsys.readouterr().out.partition("at best")[2]
    for dtype, unit in _C.peak_units():
        rate = next(float(line.split()[3]) for line in out.splitlines() if line.startswith(f"{dtype} by {unit} "))
        assert math.isfinite(rate) and rate > 0
    assert "GB/s, read and written in place" in out


class _Units:
    """A CPU with two units for bfloat16."""

    @staticmethod
    def peak_units():
        return [("float32", "avx2"), ("float32", "avx512"), ("bfloat16", "avx512_bf16"), ("bfloat16", "amx_bf16")]

    @staticmethod
    def peak_flops(dtype, unit):
        return {"avx2": (2e9, 1e9), "avx512": (3e9, 2e9), "avx512_bf16": (8e9, 7e9), "amx_bf16": (30e9, 0.0)}[unit]


@pytest.mark.parametrize(
    ("dtype", "expected"),
    (
        (torch.float32, peaks.Peak("float32", "avx512", 3e9, 2e9)),
        (torch.bfloat16, peaks.Peak("bfloat16", "amx_bf16", 30e9, None)),
        (torch.float16, peaks.Peak("float32", "avx512", 3e9, 2e9)),
        (torch.float64, None),
    ),
)
def test_a_dtype_is_compared_with_its_fastest_unit(dtype, expected, monkeypatch):
    monkeypatch.setattr(peaks, "_seen", {})
    monkeypatch.setattr(peaks, "_C", _Units)
    assert peaks.peak_of(dtype) == expected
    monkeypatch.setattr(peaks, "_C", None)
    assert peaks.peak_of(dtype) is None and peaks.peaks() == []


def test_the_fastest_measurement_of_a_process_counts(monkeypatch):
    monkeypatch.setattr(peaks, "_seen", {})
    monkeypatch.setattr(peaks, "_C", _Units)
    for measured, expected in (((5e9, 4e9), (5e9, 4e9)), ((3e9, 2e9), (5e9, 4e9)), ((4e9, 6e9), (5e9, 6e9))):
        monkeypatch.setattr(_Units, "peak_flops", staticmethod(lambda dtype, unit, measured=measured: measured))
        assert peaks.peak_of(torch.float32) == peaks.Peak("float32", "avx2", *expected)
