"""``group=`` of the losses: several processes give one process's loss and gradients on the joined batch, for both transports.

Each process has its own part of a batch, and an encoder that is a matrix. What DistributedDataParallel would use, the mean over
processes of losses and of the gradients of encoder, scale and bias, is compared with one process that has the whole batch. Batches
are uneven, and one process has a single row.
"""

import warnings
from functools import partial

import pytest
import torch
from torch import distributed

import fastssl
from fastssl.distributed import Ranks, travel
from fastssl.functional import (
    clip_loss,
    dcl,
    debiased_nt_xent,
    hard_nt_xent,
    info_nce,
    moco_v3_loss,
    nt_xent,
    siglip_loss,
    sup_con,
)
from tests.support.processes import run_processes
from tests.support.rotation import of_today

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH, DIM = 7, 6
COUNTS = {2: (4, 1), 3: (3, 1, 5), 4: (2, 4, 1, 3)}


def case(loss, *names, pairs=("a", "b"), **how):
    """The loss of encoded sides ``pairs`` of a part; ``names`` are further entries of the part, by keyword."""

    def call(encode, part, scale, bias, group):
        given = {name: part[name] for name in names} | {name: value(encode, part) for name, value in how.items() if callable(value)}
        given |= {name: value for name, value in how.items() if not callable(value)}
        return loss(*(encode(part[p]) for p in pairs), scale=scale, bias=bias, group=group, **given)

    return call


def by_temperature(function):
    """A loss of a temperature, as one of a scale."""
    return lambda *sides, scale, bias, group, **how: function(*sides, temperature=1.0 / scale, group=group, **how)


def by_scale(function):
    return lambda *sides, scale, bias, group, **how: function(*sides, scale, bias, group=group, **how)


def views(function):
    def call(a, b, *, scale, bias, group, **how):
        return function(torch.stack([a, b], 1), temperature=1.0 / scale, group=group, normalize=True, **how)

    return call


def extra(encode, part):
    return encode(part["extra"])


def hard(encode, part):
    return encode(part["hard"])


def paired(encode, part):
    return encode(part["paired"])


CASES = {
    "nt_xent": case(by_temperature(nt_xent)),
    "nt_xent rows as they are": case(by_temperature(nt_xent), normalize=False),
    "nt_xent sum": case(by_temperature(nt_xent), reduction="sum"),
    "dcl": case(by_temperature(dcl)),
    "debiased": case(by_temperature(debiased_nt_xent), tau_plus=0.2),
    "hard": case(by_temperature(hard_nt_xent), beta=0.7),
    "info_nce": case(by_temperature(info_nce)),
    "info_nce ids": case(by_temperature(info_nce), "ids"),
    "info_nce extra keys": case(by_temperature(info_nce), hard_negative_keys=extra),
    "info_nce extra keys, ids": case(by_temperature(info_nce), "ids", hard_negative_keys=extra),
    "info_nce hard negatives": case(by_temperature(info_nce), hard_negative_keys=hard, hard_negative_weight=0.5),
    "info_nce unpaired": case(by_temperature(info_nce), negative_keys=extra),
    "info_nce paired": case(by_temperature(info_nce), negative_keys=paired, negative_mode="paired"),
    "info_nce smoothing": case(by_temperature(info_nce), label_smoothing=0.2, hard_negative_keys=extra),
    "info_nce smoothing, ids": case(by_temperature(info_nce), "ids", label_smoothing=0.2),
    "info_nce symmetric": case(by_temperature(info_nce), symmetric=True),
    "info_nce symmetric, ids, smoothing": case(by_temperature(info_nce), "ids", symmetric=True, label_smoothing=0.1),
    "info_nce symmetric sum": case(by_temperature(info_nce), symmetric=True, reduction="sum"),
    "passages": case(by_temperature(info_nce), pairs=("a", "passages")),
    "passages margin, more columns": case(
        by_temperature(info_nce), pairs=("a", "passages"), margin=0.1, query_query=True, doc_query=True, doc_doc=True
    ),
    "passages spared, other": case(
        by_temperature(info_nce), pairs=("a", "passages"), target=2, margin=-0.1, spare_hard_negatives=True, doc_doc="other"
    ),
    "passages target, ids": case(
        by_temperature(info_nce), "target", pairs=("a", "passages"), ids=lambda _, p: p["passage_ids"], margin=0.2, query_query=True
    ),
    "passages, several positives": case(
        by_temperature(info_nce), pairs=("a", "passages"), target=lambda _, p: p["targets"], margin=0.1, query_query=True
    ),
    "clip": case(by_scale(clip_loss), normalize=True),
    "clip ids": case(by_scale(clip_loss), "ids", normalize=True, label_smoothing=0.1),
    "siglip": case(by_scale(siglip_loss), normalize=True),
    "siglip balanced": case(by_scale(siglip_loss), image_id=lambda _, p: p["ids"], weighting="balanced"),
    "sup_con": case(views(sup_con)),
    "sup_con labels": case(views(sup_con), "labels"),
    "sup_con one, ignored": case(views(sup_con), "labels", contrast_mode="one", ignore_label=1),
    "sup_con float labels": case(views(sup_con), labels=lambda _, p: p["labels"] / 3.0, base_temperature=0.07),
    "sup_con one view": case(views(lambda f, **how: sup_con(f[:, :1], **how)), "labels"),
    "moco_v3": case(by_temperature(moco_v3_loss)),
}


def batch(counts, dtype) -> list[dict[str, torch.Tensor]]:
    """A part for each process."""
    generator = torch.Generator().manual_seed(7)
    draw = lambda *shape: torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)  # noqa: E731
    pick = lambda n, most: torch.randint(most, (n,), generator=generator)  # noqa: E731
    return [
        {
            "a": draw(n, WIDTH),
            "b": draw(n, WIDTH),
            "hard": draw(n, WIDTH),
            "extra": draw(2 + r, WIDTH),
            "paired": draw(n, 3, WIDTH),
            "passages": draw(2 * n, WIDTH),
            "passage_ids": pick(2 * n, 9) + 2**40,
            "target": pick(n, 2 * n),
            "targets": torch.randperm(2 * n, generator=generator).reshape(n, 2),
            "ids": pick(n, 6) * 2**40 - 2**41,
            "labels": pick(n, 4),
        }
        for r, n in enumerate(counts)
    ]


def parameters(dtype) -> list[torch.Tensor]:
    """Encoder (WIDTH, DIM), scale and bias."""
    weight = torch.randn(WIDTH, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) / WIDTH**0.5
    return [weight.to(dtype).requires_grad_(), *(torch.tensor(v, dtype=dtype, requires_grad=True) for v in (3.0, -1.5))]


def value_and_gradients(call, part, group, dtype) -> list[torch.Tensor]:
    weight, scale, bias = parameters(dtype)
    loss = call(lambda rows: rows @ weight, part, scale, bias, group)
    given = (weight, scale, bias)
    return [loss.detach(), *torch.autograd.grad(loss, given, allow_unused=True, materialize_grads=True)]


def mean_of_all(values: list[torch.Tensor], world: int) -> list[torch.Tensor]:
    for value in values:
        distributed.all_reduce(value)
        value /= world
    return values


def check_cases(rank: int, world: int, alone, counts, dtype, names, **how) -> None:
    parts = batch(counts, dtype)
    whole = {key: torch.cat([p[key] for p in parts]) for key in parts[0]}
    for key in ("target", "targets"):
        whole[key] = torch.cat([p[key] + 2 * sum(counts[:r]) for r, p in enumerate(parts)])
    truth = {key: value.double() if value.is_floating_point() else value for key, value in whole.items()}
    bound = 1e-12 if dtype == torch.float64 else 1e-6
    for name in names:
        # the mean is the same in all processes, and one of them compares
        wanted = None if rank else value_and_gradients(CASES[name], truth, alone, torch.float64)
        for transport in ("gather", "ring"):
            found = value_and_gradients(CASES[name], parts[rank], Ranks(transport=transport, **how), dtype)
            found = mean_of_all(found, world)
            for what, mine, theirs in zip(("loss", "encoder", "scale", "bias"), found, wanted or (), strict=wanted is not None):
                error = (mine.double() - theirs).norm()
                # a gradient that is 0 but for rounding (of the scale, say) is measured by the largest of all
                size = theirs.norm() + 0.1 * wanted[1].norm()
                assert error <= bound * size, f"{name}, {transport}, {counts}, {dtype}: {what} {mine} instead of {theirs}"


def check_stats(rank: int, world: int, alone) -> None:
    """Ranks and similarities of a process's rows are those that the rows have in the joined batch."""
    parts = batch(COUNTS[world], torch.float64)
    a, b = (torch.cat([p[key] for p in parts]) for key in ("a", "b"))
    first, count = sum(COUNTS[world][:rank]), COUNTS[world][rank]
    for symmetric in (False, True):
        for transport in ("gather", "ring"):
            how = {"symmetric": symmetric, "return_stats": True, "temperature": 0.3}
            _, mine = info_nce(parts[rank]["a"], parts[rank]["b"], group=Ranks(transport=transport), **how)
            _, wanted = info_nce(a, b, group=alone, **how)
            for found, expected in zip(mine[:4], wanted[:4], strict=True):
                torch.testing.assert_close(found, expected[first : first + count])


def check_sixteen_bit(rank: int, world: int, alone) -> None:
    """bfloat16 rows of all processes against the float64 loss of the same rows: sums are float32, and gradients are rounded."""
    parts = batch(COUNTS[world], torch.bfloat16)
    for transport in ("gather", "ring"):
        for loss in (nt_xent, partial(info_nce, symmetric=True)):
            sides = [parts[rank][key].clone().requires_grad_() for key in "ab"]
            found = loss(*sides, temperature=0.5, normalize=False, group=Ranks(transport=transport))
            grad = torch.autograd.grad(found, sides)[0]
            whole = [torch.cat([p[key] for p in parts]).double().requires_grad_() for key in "ab"]
            wanted = loss(*whole, temperature=0.5, normalize=False, group=alone)
            theirs = torch.autograd.grad(wanted, whole)[0]
            first = sum(COUNTS[world][:rank])
            mine = theirs[first : first + COUNTS[world][rank]] * world  # the sum over processes, each of which has a mean
            assert (grad.double() - mine).norm() <= 2**-6 * mine.norm(), (transport, grad, mine)
            (total,) = mean_of_all([found.detach().double()], world)
            assert (total - wanted).abs() <= 1e-5 * wanted.abs()


def check_compiled(rank: int, world: int) -> None:
    """One graph, uneven batches included, has the values and gradients of the loss that is not compiled."""
    part = batch(COUNTS[world], torch.float32)[rank]
    for name, transport in (("nt_xent", "gather"), ("clip ids", "ring")):
        weight, scale, bias = parameters(torch.float32)

        def step(weight, scale):
            return CASES[name](lambda rows: rows @ weight, part, scale, bias, Ranks(transport=transport))  # noqa: B023

        results = []
        for call in (step, torch.compile(step, backend="aot_eager", fullgraph=True)):
            loss = call(weight, scale)
            results.append([loss.detach(), *torch.autograd.grad(loss, (weight, scale))])
        torch.testing.assert_close(*results)


def check_all(rank: int, world: int) -> None:
    if world == 3:  # parts of one column and pieces of one row
        travel.PART_BYTES = travel.PIECE_BYTES = travel.LEAST_BYTES = 1
    warnings.simplefilter("error", fastssl.LocalRowsWarning)  # with a group no loss is local
    alone, _ = distributed.new_subgroups(1)  # a group of this process
    names = of_today(CASES, 2) if world == 4 else CASES
    check_cases(rank, world, alone, COUNTS[world], torch.float32, names)
    if world == 3:
        check_cases(rank, world, alone, COUNTS[world], torch.float64, of_today(CASES, 2))
    if world == 2:
        check_stats(rank, world, alone)
        check_sixteen_bit(rank, world, alone)
        check_compiled(rank, world)
        check_cases(rank, world, alone, (4, 4), torch.float32, ("nt_xent", "clip", "siglip", "info_nce ids"), even=True)


@pytest.mark.parametrize("world", [2, 3, 4])
def test_the_loss_of_all_is_that_of_one_process(world, tmp_path):
    run_processes(check_all, world, tmp_path)
