"""The proof that ``python -m tests.races`` can fail: ttsem names each fault of ``faults.py`` with its kernel, its line and, for a
race, two programs. It finds nothing in the same call without the fault."""

import importlib
import re

import pytest
from ttsem.sanitize import KernelFault, Unjudged

from tests.races.faults import FAULTS, SHORT_GRID, normalize_pair, plant, softplus
from tests.without_gpu.interpreted.fixtures import poison  # noqa: F401  (used in every test)


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_named(monkeypatch, tmp_path, name):
    module, call, old, new, kind, kernel, line = FAULTS[name]
    call(monkeypatch, importlib.import_module(f"fastssl.kernels.{module}"))  # nothing is wrong without the fault
    planted = plant(monkeypatch, tmp_path, module, old, new)
    with pytest.raises(KernelFault) as stop:
        call(monkeypatch, planted)
    fault = stop.value.fault
    assert (fault.kind, fault.kernel) == (kind, kernel) and fault.source_line and line in str(stop.value), stop.value
    assert kind != "race" or len(set(re.findall(r"\(\d+, \d+, 0\)", fault.detail))) == 2, f"no two programs in: {stop.value}"


def test_a_grid_with_one_program_too_few_leaves_poison(monkeypatch, tmp_path):
    """No access is wrong here, but the last values are, since no program wrote them."""
    planted = plant(monkeypatch, tmp_path, *SHORT_GRID)
    assert normalize_pair(monkeypatch, importlib.import_module("fastssl.kernels.normalize"))[2].isfinite().all()
    assert normalize_pair(monkeypatch, planted)[2].isnan().any()


def test_what_ttsem_does_not_know_is_no_success(monkeypatch, tmp_path):
    old, new = "libdevice.fast_dividef(n, d)", "libdevice.div_rd(n, d)"
    terms = plant(monkeypatch, tmp_path, "sigmoid_pair_terms", old, new)
    planted = plant(monkeypatch, tmp_path, "softplus_sum", "from .sigmoid_pair_terms", f"from .{terms.__name__.split('.')[-1]}")
    with pytest.raises(Unjudged, match="__nv_fdiv_rd"):
        softplus(monkeypatch, planted)
