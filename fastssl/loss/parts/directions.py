"""The random directions of a sketched loss: given ones, or new unit columns from a seed that all processes share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastssl.checks import check_constant, check_like, check_matrix, check_whole
from fastssl.distributed.class_sums import sum_without_gradient
from fastssl.ops._random import check_generator, seed_of, seed_tensor
from fastssl.ops.unit_columns import unit_columns

if TYPE_CHECKING:
    from fastssl.distributed.ranks import Joined


#: New directions of a call.
MOST_SLICES = 1 << 20


def check_slices(op: str, name: str, slices) -> int:
    """How many new directions are wanted, if none are given."""
    return check_whole(op, name, slices, 1, MOST_SLICES + 1)


def check_directions(op: str, z: Tensor, directions, generator, seed) -> None:
    """At most one of ``directions`` (D, S), ``generator`` and ``seed``, which must fit z (..., D). Nothing is drawn."""
    given = [name for name, value in (("directions", directions), ("generator", generator), ("seed", seed)) if value is not None]
    if len(given) > 1:
        raise ValueError(f"{op}: only one of directions, generator and seed can be given, got {' and '.join(given)}")
    check_generator(op, generator, z.device, "z")
    if seed is not None:
        seed_tensor(op, seed, z.device, "z")
    if directions is None:
        return
    check_matrix(op, "directions", directions, "D, S")
    check_like(op, "directions", directions, "z", z)
    if directions.shape[0] != z.shape[-1]:
        raise ValueError(f"{op}: directions must be (D, S) with D = {z.shape[-1]} of z, got {tuple(directions.shape)}")
    check_constant(op, "directions", directions)


def same_directions(op: str, z: Tensor, count: int, directions, generator, seed, joined: Joined | None) -> Tensor:
    """The checked directions (D, S), or ``count`` new ones in the dtype of z. Where no seed is given, all processes take the one
    that the first of them draws."""
    if directions is not None:
        return directions.detach()
    drawn = seed_of(op, seed, generator, z.device, ("z", z))
    if joined is not None and seed is None:
        drawn = sum_without_gradient(torch.where(joined.first == 0, drawn, 0), joined.name)
    return unit_columns(drawn, z.shape[-1], count, z.dtype)
