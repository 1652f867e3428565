"""The op behind random masking: which patches of each sample stay, by rank, without a sort on a GPU.

    rank_i = #{j : (key_j, j) < (key_i, i)}            the order of a stable argsort of the keys of a sample, (L,)
    ids_restore_i = rank_i        ids_shuffle_{rank_i} = i        mask_i = [rank_i >= keep]

The keys are given noise (N, L), or 32 random bits of Philox4x32-10: word l mod 4 of the counter (l / 4, n, 0x6D61736B, 0) under
the seed. These bits are the same on every device and depend only on the seed and on the place in the batch. NaN counts as larger
than all numbers, -0 as equal to 0. Each id costs 4 bytes read and 20 written. The CPU orders up to 256 keys by a sorting network,
more by digits. A GPU counts, which takes L^2 comparisons a sample (157 M for N = 4096, L = 196); beyond ``COUNTED`` ids it takes
torch's own stable sort.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fastssl.checks import as_python, check_choice, check_dense, check_float_dtype, check_number, check_whole, is_whole

from ._philox import random_bits
from ._random import check_generator, check_mode, check_place, same_place, seed_tensor, uniform
from ._register import define_op

#: Ids of a sample up to which the CUDA kernel counts ranks; the keys of a sample lie in shared memory.
COUNTED = 4096
STREAM = 0x6D61736B


class MaskIds(NamedTuple):
    """Which patches of each sample stay, as ``mask_ids`` draws them.

    Attributes:
        ids_keep: (N, K) int64, the patches that stay, in the order of the noise.
        ids_mask: (N, L - K) int64, the removed patches, in the order of the noise.
        ids_restore: (N, L) int64, the place of each patch in ``torch.cat([ids_keep, ids_mask], 1)``; for ``restore_tokens``.
        mask: (N, L) float32, 1 = removed, 0 = stays.

    Examples:
        >>> from fastssl.functional import mask_ids
        >>> ids = mask_ids((2, 196), 0.75, seed=0)
        >>> ids.ids_keep.shape, ids.ids_mask.shape, ids.mask.shape
        (torch.Size([2, 49]), torch.Size([2, 147]), torch.Size([2, 196]))
    """

    ids_keep: Tensor
    ids_mask: Tensor
    ids_restore: Tensor
    mask: Tensor


def _fake(noise, seed, rows, length, keep):
    like = noise if noise is not None else seed
    ids = like.new_empty((rows, length), dtype=torch.int64)
    return ids, torch.empty_like(ids), like.new_empty((rows, length), dtype=torch.float32)


_mask_ids = define_op(
    "mask_ids",
    "(Tensor? noise, Tensor? seed, SymInt rows, SymInt length, SymInt keep) -> (Tensor, Tensor, Tensor)",
    _fake,
    "mask_ids",
)

ROUNDINGS = ("keep_floor", "mask_floor", "mask_ceil", "keep_one")


def num_kept(length: int, mask_ratio: float, rounding: str = "keep_floor") -> int:
    """How many of ``length`` patches stay, in the double arithmetic of the libraries.

    Args:
        length: L, the number of patches, at least 1.
        mask_ratio: r, the share that is removed, in [0, 1].
        rounding: "keep_floor" gives int(L (1 - r)), as MAE, transformers and lightly do. "mask_floor" gives L - int(L r), as
            stable-pretraining does. "mask_ceil" gives L - ceil(L r), as SimMIM does. "keep_one" gives max(1, int(L (1 - r))), as
            timm's patch dropout does. At r = 1 "keep_one" keeps 1 patch, the others none.

    Returns:
        The number of patches that stay, in [0, L].

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it.

    Examples:
        >>> from fastssl.functional import num_kept
        >>> [num_kept(100, 0.9, rounding) for rounding in ("keep_floor", "mask_floor", "mask_ceil", "keep_one")]
        [9, 10, 10, 9]
    """
    length = check_whole("num_kept", "length", length, 1)
    return kept_of("num_kept", length, mask_ratio, rounding)


def kept_of(op: str, length: int, mask_ratio: float, rounding: str) -> int:
    """``num_kept`` for ``op``, of a length that has been checked."""
    check_ratio(op, mask_ratio)
    check_choice(op, "rounding", rounding, ROUNDINGS)
    if rounding == "mask_floor":
        return length - int(length * mask_ratio)
    if rounding == "mask_ceil":
        return length + int(-(length * mask_ratio) // 1)
    kept = int(length * (1 - mask_ratio))
    return max(1, kept) if rounding == "keep_one" else kept


def check_ratio(op: str, mask_ratio) -> None:
    check_number(op, "mask_ratio", mask_ratio)
    if not 0 <= mask_ratio <= 1:
        raise ValueError(f"{op}: mask_ratio must be in [0, 1], got {mask_ratio}")


def mask_ids(
    size: tuple[int, int],
    mask_ratio: float = 0.75,
    *,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
    num_keep: int | None = None,
    rounding: str = "keep_floor",
    device: torch.device | str | None = None,
) -> MaskIds:
    """Draws at random which patches of each sample stay (He et al. 2022, section 3): the K with the smallest noise, in its order.

    Args:
        size: (N, L), the number of samples and of patches of each, both at least 1.
        mask_ratio: The share that is removed, in [0, 1]; it is not used with ``num_keep``. At 1 ``ids_keep`` is (N, 0).
        noise: (N, L) float32, bfloat16, float16 or float64; the order is that of ``torch.argsort(noise, stable=True)``. None: one
            call of ``torch.rand`` with ``generator`` makes it, as in the libraries.
        generator: A ``torch.Generator`` on ``device`` for ``torch.rand``. None: torch's default generator.
        seed: 64 bits for Philox in place of noise: the same seed gives the same mask on every device. A one-element int64 tensor
            on ``device`` is read there, anew at each replay of a CUDA graph.
        num_keep: K itself, in [0, L].
        rounding: The rule from ratio to K, see ``num_kept``.
        device: Where noise and result lie. None: the device of ``noise``, ``seed`` or ``generator``, else the CPU.

    Returns:
        A ``MaskIds`` of ``ids_keep`` (N, K), ``ids_mask`` (N, L - K), ``ids_restore`` (N, L) int64 and ``mask`` (N, L) float32.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it. No generator has been advanced then.

    Examples:
        >>> import torch
        >>> from fastssl.functional import mask_ids
        >>> ids = mask_ids((1, 4), 0.5, noise=torch.tensor([[0.9, 0.1, 0.8, 0.3]]))
        >>> ids.ids_keep, ids.mask
        (tensor([[1, 3]]), tensor([[1., 0., 1., 0.]]))
    """
    return draw_ids(
        "mask_ids",
        size,
        mask_ratio,
        noise=noise,
        generator=generator,
        seed=seed,
        num_keep=num_keep,
        rounding=rounding,
        device=device,
    )


def draw_ids(
    op: str,
    size,
    mask_ratio,
    *,
    by="size",
    placed_by="device",
    noise=None,
    generator=None,
    seed=None,
    num_keep=None,
    rounding="keep_floor",
    device=None,
) -> MaskIds:
    """``mask_ids`` for the public function ``op``; its arguments ``by`` fix the size, its argument ``placed_by`` the device."""
    rows, length = check_size(op, size)
    if (noise is not None) + (generator is not None) + (seed is not None) > 1:
        raise ValueError(f"{op}: only one of noise, generator and seed can be given")
    keep = kept_of(op, length, mask_ratio, rounding) if num_keep is None else as_python(num_keep)
    if not is_whole(keep) or not 0 <= keep <= length:
        raise ValueError(f"{op}: num_keep must be a whole number in [0, {length}], got {num_keep!r} (follows from {by})")
    device = check_place(op, device)
    if noise is not None:
        check_noise(op, noise, rows, length, by, device, placed_by)
        noise = noise.detach().contiguous()
    elif seed is not None:
        seed = seed_tensor(op, seed, device, placed_by)
    else:
        check_generator(op, generator, device, placed_by)
        noise = uniform(rows, length, generator, device)
    return in_order(noise, seed, rows, length, keep)


def in_order(noise: Tensor | None, seed: Tensor | None, rows: int, length: int, keep: int) -> MaskIds:
    """The masks of contiguous noise (rows, length), or of a seed (); the arguments are not checked."""
    given = seed if noise is None else noise
    assert given is not None
    run = by_sorting if given.is_cuda and length > COUNTED else _mask_ids
    shuffle, restore, mask = run(noise, seed, rows, length, keep)
    return MaskIds(shuffle[:, :keep], shuffle[:, keep:], restore, mask)


def by_sorting(noise: Tensor | None, seed: Tensor | None, rows: int, length: int, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """The op in plain PyTorch: noise (N, L), or seed () -> ids_shuffle, ids_restore (N, L) int64 and mask (N, L) float32.

    It is the op's reference, and makes the ids of samples that are too long for the kernel that counts ranks on a GPU.
    """
    if noise is None:
        assert seed is not None
        noise = random_bits(rows, length, seed, STREAM)
    shuffle = torch.argsort(noise, dim=1, stable=True)
    places = torch.arange(length, device=noise.device).expand(rows, length)
    restore = torch.empty_like(shuffle).scatter_(1, shuffle, places)
    return shuffle, restore, (restore >= keep).float()


def check_size(op: str, size) -> tuple[int, int]:
    if not isinstance(size, (tuple, list, torch.Size)) or len(size) != 2:
        raise TypeError(f"{op}: size must be a pair (N, L), got {size!r}")
    for side in size:
        if not is_whole(side) or side < 1:
            raise ValueError(f"{op}: size must be (N, L), whole numbers of at least 1, got {tuple(size)}")
    if size[0] >= 2**31 or size[1] >= 2**31:
        raise ValueError(f"{op}: size must be below 2^31 on each side, got {tuple(size)}")
    return as_python(size[0]), as_python(size[1])


def check_noise(op: str, noise, rows: int, length: int, by: str, device: torch.device | None, placed_by: str = "device") -> None:
    check_dense(op, "noise", noise, "a tensor ({}, {})", rows, length)
    check_float_dtype(op, "noise", noise)
    if tuple(noise.shape) != (rows, length):
        raise ValueError(f"{op}: noise must have shape ({rows}, {length}), got {tuple(noise.shape)} (follows from {by})")
    check_mode(op, "noise", noise)
    if device is not None and not same_place(noise.device, device):
        raise ValueError(f"{op}: noise must be on {device}, got {noise.device} (follows from {placed_by})")
