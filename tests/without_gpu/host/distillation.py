"""Soft cross-entropy and Sinkhorn behind the stand-in of ``losses.py``: launches are specialised, compiled for sm_90 and packed.

``test_host.py`` runs this file in a process of its own.
"""

import pytest
import torch

from fastssl.functional import sinkhorn, soft_cross_entropy
from fastssl.kernels import sinkhorn as sinkhorn_kernels
from fastssl.kernels import soft_cross_entropy as kernels
from fastssl.kernels import soft_rows
from tests.support.rotation import of_today
from tests.without_gpu.host import losses
from tests.without_gpu.host.losses import BF16, F16, F32, LAUNCHES, hopper, not_compiled  # noqa: F401  fixtures


def new(*shape, dtype=BF16):
    return torch.zeros(shape, dtype=dtype)


@pytest.fixture(scope="module", autouse=True)
def served(hopper):  # noqa: F811
    """The launchers for the CPU key, in the place of the C++ kernels."""
    for module, names in (
        (kernels, ("soft_cross_entropy_fwd", "soft_cross_entropy_in_place", "soft_cross_entropy_scale")),
        (sinkhorn_kernels, ("sinkhorn_start", "sinkhorn_step")),
    ):
        for name in names:
            hopper.impl(name, getattr(module, name), "CPU", allow_override=True)


def rows(*shape, dtype=BF16, **how):
    """A step, forward and backward, of row against row, or of (S, T, batch, K)."""

    def step():
        student, teacher = (
            (new(*shape, dtype=dtype),) * 2 if len(shape) == 2 else (new(n, *shape[2:], dtype=dtype) for n in shape[:2])
        )
        leaf = student.requires_grad_()
        torch.autograd.grad(soft_cross_entropy(leaf * 1, teacher.detach(), **how).sum(), leaf)

    return step


def balanced(*shape, dtype=BF16, **how):
    return lambda: sinkhorn(new(*shape, dtype=dtype), 0.05, 2, **how)


STATES = ["row_states_kernel"] * 2
ONE, SCALE, MERGE = ["soft_cross_entropy_kernel"], ["soft_cross_entropy_scale_kernel"], ["merge_states_kernel"]
SINKHORN = ["columns_kernel", *MERGE, "row_states_kernel", "columns_kernel", *MERGE]
SINKHORN_OF_FEW = ["columns_kernel", *MERGE, "row_states_kernel", *MERGE, "columns_kernel", *MERGE]
#: A step, and what it launches.
STEPS = {
    "iBOT": (rows(4915, 8192, potential=new(8192, dtype=F32), weight=new(4915, dtype=F32), in_place=True), ONE + SCALE),
    "few wide rows": (rows(64, 65536, center=new(1, 65536, dtype=F32)), STATES + MERGE + ONE + MERGE + SCALE),
    "given": (rows(300, 32000, teacher_temperature=None), ONE + SCALE),
    "SwAV": (rows(8, 2, 64, 3000, ignore_diagonal=True), STATES + ONE + MERGE + SCALE),
    "DINO": (rows(10, 2, 16, 65536, center=new(65536, dtype=F32), ignore_diagonal=True), STATES + MERGE + ONE + MERGE + SCALE),
    "heads": (rows(300, 3000, dtype=F16, heads=[1000, 2000]), ONE + ONE + MERGE + SCALE),
    "odd": (rows(31, 77, dtype=F32, center=new(77, dtype=F32)), ONE + SCALE),
    "one": (rows(1, 1), ONE + SCALE),
    "Sinkhorn": (balanced(4915, 8192), SINKHORN),
    "Sinkhorn of few": (balanced(128, 65536), SINKHORN_OF_FEW),
    "Sinkhorn by positions": (balanced(32, 16, 1000, separate=1, dtype=F32), SINKHORN),
}  # fmt: skip


@pytest.mark.parametrize("name", of_today(STEPS, 4))
def test_a_step_compiles_without_faults_and_other_rows_compile_nothing(name):
    step, wanted = STEPS[name]
    before = len(losses.BUILT)
    LAUNCHES.clear()
    step()
    assert [kernel for kernel, _ in LAUNCHES] == wanted and losses._faulty(before) == []
    built = len(losses.BUILT)
    step()
    assert losses.BUILT[built:] == []


def test_the_number_of_rows_is_no_constant_of_a_kernel():
    """It differs at each step of iBOT."""
    call = lambda n: (rows(n, 1000)(), rows(3, 2, n, 1000)(), balanced(n, 1000)())  # noqa: E731
    call(256)
    before = len(losses.BUILT)
    for count in (257, 272, 301):
        call(count)
    assert losses.BUILT[before:] == []


def test_nothing_of_size_rows_by_prototypes_is_made(monkeypatch):
    """Beside the gradient; in place not even that."""
    made = []
    for module in (kernels, soft_rows, sinkhorn_kernels):

        def noted(like, dtype, *shapes, new=module.new):
            made.extend(shapes)
            return new(like, dtype, *shapes)

        monkeypatch.setattr(module, "new", noted)
    student, teacher, bias = new(300, 8192), new(300, 8192), new(1, 8192, dtype=F32)
    args = teacher, bias, None, torch.ones(2), [8192], 300, 1, False, False
    kernels.soft_cross_entropy_in_place(student, *args)
    sinkhorn_kernels.sinkhorn_start(student, torch.ones(1), 1, 1)
    sinkhorn_kernels.sinkhorn_step(student, bias, torch.ones(1), [8192], 1)
    assert made and max(torch.Size(shape).numel() for shape in made) <= student.numel() // 4
    kernels.soft_cross_entropy_fwd(student, *args, True)
    assert sum(torch.Size(shape).numel() >= student.numel() // 2 for shape in made) == 1


@pytest.mark.usefixtures("not_compiled")
def test_every_kernel_is_launched_by_some_step():
    LAUNCHES.clear()
    for step, _ in STEPS.values():
        step()
    modules = kernels, sinkhorn_kernels, soft_rows
    assert {kernel for kernel, _ in LAUNCHES} == set().union(*map(losses._kernels_of, modules))
