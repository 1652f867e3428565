"""Planned launches behind the stand-in of ``losses.py``: the compiled kernel that a key finds is the one Triton would take.

With ``launch.checked`` every planned launch asks Triton, so each test is a walk through arguments that must not share a plan.
"""

import pytest
import torch
import triton
import triton.language as tl
from triton import knobs
from triton.runtime import driver

from fastssl.functional import similarity_lse
from fastssl.kernels.host import launch
from fastssl.ops._register import _C
from fastssl.testing.cases import CASES
from tests.without_gpu.host.losses import BF16, hopper, train  # noqa: F401  a fixture

KEYS = {"python": launch.key_of} | ({"C++": _C.launch_key} if hasattr(_C, "launch_key") else {})


@pytest.fixture(params=KEYS.values(), ids=KEYS)
def planned(monkeypatch, request):
    """No plans yet, each use of one checked; the list of the kernels launched by plans."""
    used = []

    def check(compiled, kernel, *rest):
        used.append(kernel.__name__)
        confirm(compiled, kernel, *rest)

    confirm = launch._check
    monkeypatch.setattr(launch, "_PLANS", {})
    monkeypatch.setattr(launch, "_key_of", request.param)
    monkeypatch.setattr(launch, "checked", True)
    monkeypatch.setattr(launch, "_check", check)
    assert launch.planned
    return used


@triton.jit(do_not_specialize=["N"])
def small_kernel(x_ptr, factor_ptr, out_ptr, N, stride, scale, BLOCK: tl.constexpr, EVEN: tl.constexpr):
    """out (N,) = scale factor x (N,), of any stride."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at * stride, mask=at < N, other=0.0) * scale
    if factor_ptr is not None:
        x *= tl.load(factor_ptr)
    tl.store(out_ptr + at, x, mask=at < N)


def odd(t):
    """A copy that begins one element behind an aligned address."""
    view = t.new_empty(t.numel() + 1)[1:].view(t.shape)
    return view.copy_(t)


X, OUT, FACTOR = torch.ones(512), torch.ones(512), torch.ones(1)
#: Launches that look alike: each differs from the first in one thing.
WALK = {
    "first": ((X, FACTOR, OUT, 512, 16, 0.5), {}),
    "address": ((odd(X), FACTOR, OUT, 512, 16, 0.5), {}),
    "another address": ((X, FACTOR, odd(OUT), 512, 16, 0.5), {}),
    "dtype": ((X.half(), FACTOR, OUT, 512, 16, 0.5), {}),
    "dtype of a parameter": ((X, torch.nn.Parameter(FACTOR.double()), OUT, 512, 16, 0.5), {}),
    "None": ((X, None, OUT, 512, 16, 0.5), {}),
    "one row": ((X, FACTOR, OUT, 1, 16, 0.5), {}),
    "stride 1": ((X, FACTOR, OUT, 512, 1, 0.5), {}),
    "odd stride": ((X, FACTOR, OUT, 512, 17, 0.5), {}),
    "64 bits": ((X, FACTOR, OUT, 512, 2**40, 0.5), {}),
    "an integer scale": ((X, FACTOR, OUT, 512, 16, 1), {}),
    "a bool": ((X, FACTOR, OUT, 512, True, 0.5), {}),
    "constant": ((X, FACTOR, OUT, 512, 16, 0.5), {"BLOCK": 64}),
    "option": ((X, FACTOR, OUT, 512, 16, 0.5), {"num_warps": 8}),
}


def step(name):
    args, options = WALK[name]
    launch.launch(small_kernel, (1,), *args, **({"BLOCK": 128, "EVEN": True, "num_warps": 4} | options))


def test_launches_that_look_alike_share_no_plan(planned):
    """In any order: of each the first goes Triton's way, and so do those that have no plan."""
    unplanned = {"address", "another address", "a bool"}
    for name in [*WALK, *reversed(WALK)]:
        before = len(launch._PLANS)
        step(name)
        assert len(launch._PLANS) - before in (0, 1)
    assert len(planned) == len(launch._PLANS) == len(WALK) - len(unplanned)


@pytest.mark.parametrize("forgotten", ["dtype", "value", "None", "address", "kind"])
def test_a_key_that_forgets_something_is_found_out(planned, monkeypatch, forgotten):
    """The walk above fails where a key says less."""

    def kind(value):
        if isinstance(value, torch.Tensor):
            return "tensor" if forgotten in ("dtype", "None") else value.dtype
        if value is None:
            return "tensor" if forgotten == "None" else None
        if isinstance(value, (int, float)) and forgotten == "kind":
            return "number"
        return "int" if forgotten == "value" and type(value) is int else float if type(value) is float else value

    monkeypatch.setattr(launch, "_key_of", lambda arguments: (tuple(map(kind, arguments)), arguments))
    with pytest.raises(AssertionError, match="the plan is another kernel than Triton's"):
        for name in WALK:
            step(name)


def test_the_launchers_of_a_loss_launch_by_plans_what_they_did_at_first(planned):
    first = train(CASES["nt_xent"], (512, 128), BF16)
    assert not planned
    assert train(CASES["nt_xent"], (512, 128), BF16, seed=1) == first
    assert planned == [kernel for kernel, _ in first]


def test_the_precision_of_products_is_part_of_a_plan(planned):
    x, y = torch.randn(300, 128), torch.randn(300, 128)
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("high", "highest") * 2:
            torch.set_float32_matmul_precision(precision)
            similarity_lse(x, y)
    finally:
        torch.set_float32_matmul_precision(before)
    assert planned


def test_each_device_has_its_own_plan(planned, monkeypatch):
    step("first")
    step("first")
    assert len(planned) == 1
    monkeypatch.setattr(driver.active, "get_current_device", lambda: 1)
    step("first")
    assert len(planned) == 1
    step("first")
    assert len(planned) == 2
    first, second = (plan[1] for plan in launch._PLANS.values())
    assert first is not second


def test_a_hook_sees_every_launch(planned):
    """As Triton's profiler sets it."""
    step("first")
    step("first")
    seen = []
    hook = lambda metadata: seen.append(metadata.get()["name"])  # noqa: E731
    knobs.runtime.launch_enter_hook.add(hook)
    try:
        step("first")
    finally:
        knobs.runtime.launch_enter_hook.remove(hook)
    step("first")
    assert seen == ["small_kernel"] and len(planned) == 2


def test_plans_do_not_pile_up(planned, monkeypatch):
    monkeypatch.setattr(launch, "_MOST", 5)
    for rows in range(1, 12):
        launch.launch(small_kernel, (1,), X, FACTOR, OUT, rows, 16, 0.5, BLOCK=128, EVEN=True)
    assert 0 < len(launch._PLANS) <= 5


def test_an_argument_of_another_kind_is_left_to_triton():
    tensor, wrapped = torch.zeros(16), torch.zeros(16).as_subclass(type("Sub", (torch.Tensor,), {}))
    for find in KEYS.values():
        assert find((tensor, torch.nn.Parameter(tensor), None, 1, 0.5)) is not None
        for other in (True, "a", wrapped, torch.float32, tensor[1:], torch.zeros(16, device="meta")):
            assert find((tensor, other)) is None, other
        assert find((tensor, 1))[0] == find((odd(tensor[:0]), 1))[0] != find((tensor, 1.0))[0]
