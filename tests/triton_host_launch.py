"""Planned launches behind the stand-in of ``triton_host.py``: the compiled kernel that a key finds is the one Triton would take.

With ``_launch.checked`` every planned launch asks Triton, so each test is a walk through arguments that must not share a plan.
"""

import pytest
import torch
from triton import knobs
from triton.runtime import driver
from triton_host import BF16, BUILT, F16, LAUNCHES, hopper, train  # noqa: F401  a fixture

from fastssl.functional import nt_xent, similarity_lse
from fastssl.kernels import _launch
from fastssl.ops._register import _C
from fastssl.testing.cases import CASES

KEYS = {"python": _launch.key_of} | ({} if _C is None else {"C++": _C.launch_key})


@pytest.fixture(params=KEYS.values(), ids=KEYS)
def planned(monkeypatch, request):
    """No plans yet, each use of one checked; the list of the kernels launched by plans."""
    used = []

    def check(compiled, kernel, *rest):
        used.append(kernel.__name__)
        confirm(compiled, kernel, *rest)

    confirm = _launch._check
    monkeypatch.setattr(_launch, "_PLANS", {})
    monkeypatch.setattr(_launch, "_key_of", request.param)
    monkeypatch.setattr(_launch, "checked", True)
    monkeypatch.setattr(_launch, "_check", check)
    assert _launch.planned
    return used


@pytest.mark.parametrize("name, shape, dtype", [("nt_xent", (512, 128), BF16), ("similarity_two_sided", (256, 304, 96), F16)])
def test_a_second_step_launches_by_plans_what_the_first_one_did(planned, name, shape, dtype):
    first = train(CASES[name], shape, dtype)
    assert not planned
    assert train(CASES[name], shape, dtype, seed=1) == first
    assert planned == [kernel for kernel, _ in first]


def odd(t):
    """A copy that begins one element behind an aligned address."""
    view = t.new_empty(t.numel() + 1)[1:].view(t.shape)
    return view.copy_(t)


def apart(t, by):
    """A copy whose rows are ``by`` elements apart."""
    return torch.zeros(len(t), by, dtype=t.dtype)[:, : t.shape[1]].copy_(t)


def walk(dtype=BF16):
    """Calls that look alike: rows, columns, strides, addresses, ids, scale and dtypes differ in one thing at a time."""
    x, y = torch.randn(512, 128).to(dtype), torch.randn(704, 128).to(dtype)
    ids = torch.arange(704)
    factor = torch.nn.Parameter(torch.tensor(2.0))
    lse = lambda x, y, **options: similarity_lse(x, y.detach(), **options)  # noqa: E731
    return [
        lambda: lse(x, y),
        lambda: lse(odd(x), y),
        lambda: lse(x, odd(y)),
        lambda: lse(x[:1], y),
        lambda: lse(x, y[:1]),
        lambda: lse(x[:511], y[:700]),
        lambda: lse(apart(x, 144), y),
        lambda: lse(apart(x, 131), apart(y, 131)),
        lambda: lse(x, y.t().contiguous().t()),
        lambda: lse(x, y, x_id=ids[:512], y_id=ids),
        lambda: lse(x, y, x_id=ids[:512].int(), y_id=ids.int()),
        lambda: lse(x, y, x_id=odd(ids[:512].int()), y_id=ids.int()),
        lambda: lse(x, y, scale=factor.detach()),
        lambda: lse(x, y, scale=factor.detach().half()),
        lambda: lse(x, y, y_bias=torch.zeros(704)),
    ]


def test_arguments_that_look_alike_share_no_plan(planned):
    for calls in (walk(), walk(F16)):
        for call in calls * 2:
            call()
    assert len(planned) > 20


@pytest.mark.parametrize("forgotten", ["dtype", "value", "None", "address"])
def test_a_key_that_forgets_something_is_found_out(planned, monkeypatch, forgotten):
    """The walk above fails where a key says less."""
    whole = _launch.key_of

    def poorer(arguments):
        if forgotten == "address":
            return tuple(
                t.dtype if isinstance(t, torch.Tensor) else type(t) if type(t) is float else t for t in arguments
            ), arguments
        found = whole(arguments)
        if found is None:
            return None
        kinds = [
            "t" if forgotten == "dtype" and isinstance(k, torch.dtype)
            else "i" if forgotten == "value" and type(k) is int
            else "t" if forgotten == "None" and (k is None or isinstance(k, torch.dtype))
            else k
            for k in found[0]
        ]  # fmt: skip
        return tuple(kinds), arguments

    monkeypatch.setattr(_launch, "_key_of", poorer)
    with pytest.raises(AssertionError, match="the plan is another kernel than Triton's"):
        for calls in (walk(), walk(F16)):
            for call in calls * 2:
                call()


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
    x, y = torch.randn(512, 128).to(BF16), torch.randn(700, 128).to(BF16)
    similarity_lse(x, y)
    similarity_lse(x, y)
    used = len(planned)
    assert used > 0
    before = len(BUILT)
    monkeypatch.setattr(driver.active, "get_current_device", lambda: 1)
    similarity_lse(x, y)
    assert len(planned) == used and len(BUILT) > before  # loaded there by Triton itself
    similarity_lse(x, y)
    assert len(planned) > used


def test_a_hook_sees_every_launch(planned):
    """As Triton's profiler sets it."""
    views = [torch.randn(64, 128).to(BF16) for _ in range(2)]
    nt_xent(*views)
    LAUNCHES.clear()
    nt_xent(*views)
    count, seen = len(LAUNCHES), []
    assert len(planned) == count
    hook = lambda metadata: seen.append(metadata.get()["name"])  # noqa: E731
    knobs.runtime.launch_enter_hook.add(hook)
    try:
        nt_xent(*views)
    finally:
        knobs.runtime.launch_enter_hook.remove(hook)
    assert len(seen) == count and len(planned) == count


def test_plans_do_not_pile_up(planned, monkeypatch):
    monkeypatch.setattr(_launch, "_MOST", 5)
    y = torch.randn(64, 128).to(BF16)
    for rows in range(1, 12):
        similarity_lse(torch.randn(rows, 128).to(BF16), y)
    assert 0 < len(_launch._PLANS) <= 5


def test_an_argument_of_another_kind_is_left_to_triton():
    tensor, wrapped = torch.zeros(16), torch.zeros(16).as_subclass(type("Sub", (torch.Tensor,), {}))
    for find in KEYS.values():
        assert find((tensor, torch.nn.Parameter(tensor), None, 1, 0.5)) is not None
        for other in (True, "a", wrapped, torch.float32, tensor[1:], torch.zeros(16, device="meta")):
            assert find((tensor, other)) is None, other
        assert find((tensor, 1))[0] == find((odd(tensor[:0]), 1))[0] != find((tensor, 1.0))[0]
