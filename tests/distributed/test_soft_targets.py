"""DINO's, iBOT's and SwAV's losses, Sinkhorn and centres over several processes: what one process has with the joined batch.

Batches are uneven, one process has a single image, and one has no masked patch.
"""

import sys
from types import ModuleType

import pytest
import torch
from torch import distributed

from fastssl.compat import dino, dinov2, dinov3, solo, swav
from fastssl.distributed import Ranks
from fastssl.functional import dino_loss, ibot_loss, patch_weights, sinkhorn, swav_loss, update_center
from fastssl.loss import DINOLoss, IBOTPatchLoss, SwaVLoss
from tests.support.processes import run_processes
from tests.support.rotation import of_today

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH, COLUMNS = 7, 12
COUNTS = {1: (6,), 2: (5, 1), 3: (2, 1, 3)}
HEADS = [8, 4]


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Part:
    """What a process has of the batch: the images from ``first`` on; crops, logits of a teacher, a queue, masked patches."""

    def __init__(self, first: int, count: int, dtype: torch.dtype):
        own = slice(first, first + count)
        self.crops = draw(1, 4, 6, WIDTH)[:, own].to(dtype)  # of the student's network
        self.teacher = draw(2, 2, 6, COLUMNS)[:, own].to(dtype)
        self.queue = draw(3, 2, 18, COLUMNS)[:, 3 * first : 3 * (first + count)].to(dtype)
        mask = draw(4, 6, 9) > 0.3
        mask[5] = mask[1] = False  # in two processes the second one has no masked patch
        self.mask, self.images = mask[own], count
        self.patches = draw(5, 6, 9, WIDTH)[own][self.mask].to(dtype)
        self.of_patches = draw(6, 6, 9, COLUMNS)[own][self.mask].to(dtype)
        self.weight = patch_weights(self.mask, rows=len(self.patches))
        self.center = (0.3 * draw(7, COLUMNS)).to(dtype)


def balanced(part: Part, group, **how) -> torch.Tensor:
    return sinkhorn(part.teacher, 0.2, 3, group=group, **how)


def of_patches(part: Part, encode, group, **how) -> torch.Tensor:
    return ibot_loss(encode(part.patches), part.of_patches, part.center, teacher_temperature=0.3, group=group, **how)


CASES = {
    "dino centred": lambda p, e, g: dino_loss(e(p.crops), p.teacher, p.center, teacher_temperature=0.3, group=g),
    "dino, all pairs": lambda p, e, g: dino_loss(e(p.crops), p.teacher, teacher_temperature=0.3, ignore_diagonal=False, group=g),
    "dino balanced": lambda p, e, g: dino_loss(e(p.crops), p.teacher, potential=balanced(p, g), teacher_temperature=0.2, group=g),
    "dino, each crop balanced, heads": lambda p, e, g: dino_loss(
        e(p.crops), p.teacher, potential=balanced(p, g, separate=0, heads=HEADS), teacher_temperature=0.2, heads=HEADS, group=g
    ),
    "ibot": lambda p, e, g: of_patches(p, e, g, weight=p.weight, images=p.images),
    "ibot, images that have patches": lambda p, e, g: of_patches(p, e, g, weight=p.weight),
    "ibot, all alike": lambda p, e, g: of_patches(p, e, g),
    "swav": lambda p, e, g: swav_loss(e(p.crops), teacher_temperature=0.2, group=g),
    "swav, queue": lambda p, e, g: swav_loss(e(p.crops), p.queue, teacher_temperature=0.2, iterations=2, group=g),
}


def encoder(dtype: torch.dtype) -> torch.Tensor:
    return (draw(8, WIDTH, COLUMNS) / WIDTH**0.5).to(dtype).requires_grad_()


def mean_of_all(value: torch.Tensor, world: int) -> torch.Tensor:
    value = value.clone()
    distributed.all_reduce(value)
    return value / world


def close(found: torch.Tensor, wanted: torch.Tensor, what, bound: float = 1e-6) -> None:
    assert (found.double() - wanted).norm() <= bound * wanted.norm(), (what, found, wanted)


def check_functions(part: Part, whole: Part, world: int, dtype: torch.dtype) -> None:
    bound = 1e-6 if dtype == torch.float32 else 1e-12
    for name, case in CASES.items():
        for group in (Ranks(), Ranks(transport="ring")) if name == "swav" else (Ranks(),):
            weight, mine = encoder(torch.float64), encoder(dtype)
            wanted, found = case(whole, lambda x: x @ weight, None), case(part, lambda x: x @ mine, group)  # noqa: B023
            (gradient,), (own,) = torch.autograd.grad(wanted, weight), torch.autograd.grad(found, mine)
            close(mean_of_all(found.detach(), world), wanted, (name, dtype, "loss"), bound)
            close(mean_of_all(own, world), gradient, (name, dtype, "gradient"), bound)
    close(balanced(part, Ranks()), balanced(whole, None), "potentials", max(bound, 1e-6))


def check_centers(part: Part, whole: Part, world: int) -> None:
    """The mean over the rows of all processes, of which some have none; lightly takes the mean of the processes' means."""
    for rows, everyone in ((part.teacher, whole.teacher), (part.of_patches, whole.of_patches)):
        center, wanted = part.center.clone(), whole.center.clone()
        for _ in range(2):
            update_center(center, rows, 0.7, Ranks())
            update_center(wanted, everyone, 0.7)
        close(center, wanted, "centre")
    if world == 3:
        theirs = mean_of_all(part.of_patches.mean(0), world)
        truth = whole.of_patches.mean(0)
        assert (theirs - truth).norm() > 0.1 * truth.norm()


def check_modules(part: Part, whole: Part, world: int, dtype: torch.dtype) -> None:
    """Two steps each; loss and centre are those of the functions. Without ``group`` the centre is that of all, as in lightly."""
    for mode in ("mean", "sinkhorn_knopp"):
        for group in (Ranks(), None):
            ours, alone = (DINOLoss(COLUMNS, 0.2, 0.2, 3, center_mode=mode, group=g) for g in (group, alone_in(world)))
            patches, patches_alone = (IBOTPatchLoss(COLUMNS, 0.3, center_mode=mode, group=g) for g in (group, alone_in(world)))
            for step in range(2):
                found, wanted = (
                    ours(part.teacher, part.crops @ encoder(dtype)),
                    alone(whole.teacher, whole.crops @ encoder(torch.float64)),
                )
                of_part = patches(part.of_patches, part.patches @ encoder(dtype), part.mask)
                of_whole = patches_alone(whole.of_patches, whole.patches @ encoder(torch.float64), whole.mask)
                if group is not None:
                    close(mean_of_all(found.detach(), world), wanted, ("DINOLoss", mode, step))
                    close(mean_of_all(of_part.detach(), world), of_whole, ("IBOTPatchLoss", mode, step))
            close(ours.center, alone.center.double(), ("DINOLoss", mode, "centre")) if mode == "mean" else None
            close(patches.center.value, patches_alone.center.value.double(), "IBOTPatchLoss") if mode == "mean" else None
    crops = (part.crops @ encoder(dtype)).unbind()
    found = SwaVLoss(sinkhorn_epsilon=0.2, sinkhorn_gather_distributed=True)(crops[:2], crops[2:])
    wanted = swav_loss(whole.crops @ encoder(torch.float64), teacher_temperature=0.2)
    close(mean_of_all(found.detach(), world), wanted, "SwaVLoss")


def alone_in(world: int) -> Ranks | None:
    """A group of this process, so that a module in it does not look at the others."""
    return Ranks(ALONE[0], even=True) if world > 1 else None


ALONE: list = []


def assignment(rows: torch.Tensor, everyone: torch.Tensor) -> torch.Tensor:
    """Of own rows (N, COLUMNS), balanced among those of all."""
    return torch.softmax((rows.double() + sinkhorn(everyone, 0.2)) / 0.2, -1)


def check_drop_ins(part: Part, whole: Part, dtype: torch.dtype) -> None:
    """Their centres and assignments are those of all rows; so is DINOv3's with a subgroup that nobody has made."""
    for module, key in ((dinov2, "DINOLoss"), (dinov3, "DINOLoss"), (dinov2, "iBOTPatchLoss"), (dinov3, "iBOTPatchLoss")):
        ours, rows = getattr(module, key)(COLUMNS), part.of_patches if "Patch" in key else part.teacher.flatten(0, 1)
        everyone = whole.of_patches if "Patch" in key else whole.teacher.flatten(0, 1)
        ours.center.zero_()
        ours.update_center(rows)
        ours.apply_center_update()
        close(ours.center.flatten(), 0.1 * everyone.mean(0), (module.__name__, key))
        extra = (torch.tensor(len(rows)),) if "Patch" in key else ()
        assigned = ours.sinkhorn_knopp_teacher(rows, 0.2, *extra)
        close(assigned, assignment(rows, everyone), (module.__name__, "sinkhorn"), 3e-6)
    codes = swav.distributed_sinkhorn(torch.exp(part.teacher[0] / 0.2).t(), 3)
    close(codes, assignment(part.teacher[0], whole.teacher[0]), "swav", 3e-6)
    for ours in (dino.DINOLoss(COLUMNS, 4, 0.2, 0.2, 0, 1), solo.DINOLoss(COLUMNS, 0.2, 0.2, 0, 1, num_large_crops=4)):
        epoch = (0,) if isinstance(ours, dino.DINOLoss) else ()
        ours((part.crops @ encoder(dtype)).flatten(0, 1), part.teacher.flatten(0, 1), *epoch)
        close(ours.center.flatten(), 0.1 * whole.teacher.flatten(0, 1).mean(0), "centre of DINO v1")


def check_subgroup(part: Part) -> None:
    """DINOv3's own processes are asked for their subgroup: here each is in one by itself."""
    module = ModuleType("dinov3.distributed")
    module.get_process_subgroup = lambda: ALONE[0]
    sys.modules[module.__name__] = module
    criterion, rows = dinov3.DINOLoss(COLUMNS), part.teacher.flatten(0, 1)
    criterion.init_weights()
    criterion.update_center(rows)
    criterion.apply_center_update()
    close(criterion.center[0], 0.1 * rows.double().mean(0), "centre of a subgroup")
    close(criterion.sinkhorn_knopp_teacher(rows, 0.2), assignment(rows, rows.double()), "assignment of a subgroup", 3e-6)


def check_compiled(part: Part) -> None:
    weight = encoder(torch.float32)

    def step(weight):
        crops = part.crops @ weight
        return dino_loss(crops, part.teacher, part.center, group=Ranks()) + swav_loss(crops, part.queue, group=Ranks())

    results = []
    for call in (step, torch.compile(step, backend="aot_eager", fullgraph=True)):
        loss = call(weight)
        results.append([loss.detach(), torch.autograd.grad(loss, weight)[0]])
    torch.testing.assert_close(*results)


def check_all(rank: int, world: int) -> None:
    counts = COUNTS[world]
    for dtype in (torch.float32, torch.float64):
        part, whole = Part(sum(counts[:rank]), counts[rank], dtype), Part(0, 6, torch.float64)
        check_functions(part, whole, world, dtype)
    part = Part(sum(counts[:rank]), counts[rank], torch.float32)
    if world > 1:
        ALONE.append(distributed.new_subgroups(1)[0])
    if world == 2 and of_today([check_compiled], 4):  # the compiler's own time
        check_compiled(part)
    check_centers(part, whole, world)
    check_modules(part, whole, world, torch.float32)
    check_drop_ins(part, whole, torch.float32)
    if world > 1:
        check_subgroup(part)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_soft_targets_of_all_processes(world, tmp_path):
    run_processes(check_all, world, tmp_path)
