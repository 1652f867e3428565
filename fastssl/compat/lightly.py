"""Drop-ins for lightly 1.6: memory banks, momentum update, contrastive losses, LARS, and functions on tokens.

lightly 1.6.0 asks nowhere for its own classes (no ``isinstance``), so these derive from none and lightly need not be installed.
"""

import math
import warnings
from collections.abc import Sequence

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from fastssl import masking
from fastssl.checks import as_python, check_matrix, check_number, check_whole
from fastssl.distributed import gather_rows
from fastssl.loss.cosine import NegativeCosineSimilarity
from fastssl.loss.nt_xent import DCLLoss, DCLWLoss, NTXentLoss
from fastssl.loss.variants import nearest_neighbor
from fastssl.ops._patches import check_floats, check_ids
from fastssl.ops.embed_visible import embed_visible
from fastssl.ops.gather_tokens import gather_tokens
from fastssl.ops.queue import queue_push_

from ._common import average_parameters
from ._lars import Lars
from .mae import plain_patch_embed, unwatched

__all__ = [
    "LARS",
    "DCLLoss",
    "DCLWLoss",
    "MemoryBankModule",
    "NNMemoryBankModule",
    "NTXentLoss",
    "NegativeCosineSimilarity",
    "cosine_schedule",
    "get_at_index",
    "mask_at_index",
    "mask_bool",
    "normalize_mean_var",
    "patchify",
    "random_token_mask",
    "repeat_token",
    "set_at_index",
    "unpatchify",
    "update_momentum",
    "vit_preprocess",
]


def update_momentum(model: nn.Module, model_ema: nn.Module, m: float) -> None:
    """Moves all parameters of a teacher towards those of a student in one launch, in place; buffers stay. The bits are lightly's.

    ``model_ema <- m model_ema + (1 - m) model``

    Args:
        model: the student.
        model_ema: the teacher, with parameters of the same shapes in the same order; written in place.
        m: the share that is kept, in [0, 1].

    Raises:
        TypeError, ValueError: the modules do not belong together, or ``m`` is out of range; nothing is changed then.

    Examples:
        >>> model, teacher = torch.nn.Linear(4, 2), torch.nn.Linear(4, 2)
        >>> wanted = 0.75 * teacher.weight + 0.25 * model.weight
        >>> update_momentum(model, teacher, 0.75)
        >>> torch.allclose(teacher.weight, wanted)
        True
    """
    average_parameters("update_momentum", ("model", "model_ema"), model, model_ema, m)


class MemoryBankModule(nn.Module):
    """Bank of older embeddings (``lightly.models.modules.MemoryBankModule``), to be called or subclassed.

    Args:
        size: (K, D); 0 or (0, D): no bank. K alone, as up to 1.5 (1.6 refuses it): the bank is made at the first batch, with its
            width and on its device, and a UserWarning says so: DDP makes equal only what exists when it is built.
        gather_distributed: push the embeddings of all ranks. Every rank must bring as many.
        feature_dim_first: the bank is returned as (D, K) instead of (K, D).

    Buffers, absent from the state dict as there: ``bank`` (K, D) float32, random unit rows at the start, and ``bank_ptr`` (1,)
    int64. A batch that reaches the end of the bank is cut off there and the pointer returns to 0.

    Examples:
        >>> bank = MemoryBankModule(size=(32, 8))
        >>> output, negatives = bank(torch.randn(4, 8), update=True)
        >>> negatives.shape, bank.bank_ptr.item()
        (torch.Size([8, 32]), 4)
    """

    def __init__(self, size: int | Sequence[int] = 65536, gather_distributed: bool = False, feature_dim_first: bool = True):
        super().__init__()
        self.size = _bank_size(type(self).__name__, size)
        self.gather_distributed = gather_distributed
        self.feature_dim_first = feature_dim_first
        self.register_buffer("bank", torch.empty(self.size), persistent=False)
        self.register_buffer("bank_ptr", torch.zeros(1, dtype=torch.int64), persistent=False)
        if len(self.size) == 2:
            self._init_memory_bank(self.size)

    def forward(self, output: Tensor, labels: Tensor | None = None, update: bool = False) -> tuple[Tensor, Tensor | None]:
        """output (N, D) -> output and a copy of the bank from before the update, (D, K) or (K, D); None without a bank.

        ``update`` pushes ``output``. ``labels`` are not looked at, as there. The copy is for losses that keep their negatives for
        the backward; ``fastssl.functional.moco_loss`` and ``NTXentLoss`` keep none and take ``self.bank`` itself.
        """
        if self.size[0] == 0:
            return output, None
        self._make_for(output)
        bank = self.bank.clone()
        if update:
            self._dequeue_and_enqueue(output)
        return output, bank.t() if self.feature_dim_first else bank

    def _make_for(self, output: Tensor) -> None:
        if self.bank.dim() == 1:
            check_matrix(type(self).__name__, "output", output, "N, D")
            self.bank, self.bank_ptr = self.bank.to(output.device), self.bank_ptr.to(output.device)
            self._init_memory_bank((*self.size, output.shape[1]))

    @torch.no_grad()
    def _init_memory_bank(self, size: tuple[int, ...]) -> None:
        self.bank = F.normalize(torch.randn(size).type_as(self.bank), dim=-1)
        self.bank_ptr = torch.zeros_like(self.bank_ptr)

    @torch.no_grad()
    def _dequeue_and_enqueue(self, batch: Tensor) -> None:
        """batch (N, D), any N of at least 1, brought to the dtype of the bank."""
        check_matrix(type(self).__name__, "output", batch, "N, D")
        self._make_for(batch)
        if self.gather_distributed:
            batch = gather_rows(batch, even=True)
        queue_push_(self.bank, self.bank_ptr, batch, layout="kd", overflow="truncate")


class NNMemoryBankModule(MemoryBankModule):
    """Nearest neighbours from a bank (``lightly.models.modules.NNMemoryBankModule``; NNCLR, Dwibedi et al. 2021, eq. 1).

    Args:
        size: (K, D), or K alone as up to 1.5, with K of at least 1. A bank of size 0 refuses to be called, as there.

    Examples:
        >>> bank = NNMemoryBankModule(size=(32, 8))
        >>> neighbours = bank(torch.randn(4, 8), update=True)
        >>> neighbours.shape, bank.bank_ptr.item()
        (torch.Size([4, 8]), 4)
    """

    def __init__(self, size: int | Sequence[int] = 2**16):
        super().__init__(size)

    def forward(self, output: Tensor, update: bool = False) -> Tensor:
        """output (N, D) -> (N, D) float32: of each row the row of the bank with the highest cosine similarity, the first of equals.

        ``update`` pushes ``output`` after the look-up. No gradient, no N x K similarities at once.
        """
        check_matrix("NNMemoryBankModule", "output", output, "N, D")
        if self.size[0] == 0:
            raise ValueError(
                f"NNMemoryBankModule: size must be (K, D) with at least one row to look neighbours up, got {self.size}"
            )
        self._make_for(output)
        query = F.normalize(output.detach().to(self.bank.dtype), dim=1)
        found = self.bank[nearest_neighbor(query, F.normalize(self.bank, dim=1))]
        if update:
            self._dequeue_and_enqueue(output)
        return found


def _bank_size(op: str, size: int | Sequence[int]) -> tuple[int, ...]:
    alone = isinstance(size, (int, numpy.integer))
    entries = (as_python(size),) if alone else tuple(map(as_python, size))
    if any(entry < 0 for entry in entries):
        raise ValueError(f"{op}: size must not be negative, got {size}")
    if alone and size > 0:
        message = f"{op}: size={size} leaves the width to the first batch; give ({size}, D) to train in several processes"
        warnings.warn(message, UserWarning, stacklevel=4)
    if not alone and entries != (0,) and len(entries) != 2:
        raise ValueError(f"{op}: size must be (K, D), K alone, or 0 for no bank, got {size}")
    return entries


# --- lightly.utils: optimizer and schedule ----------------------------------------------------------------------------------


class LARS(Lars):
    """``lightly.utils.lars.LARS`` (1.6): the same arguments in the same order, group options, state and steps.

    Args:
        params: parameters or groups of them.
        lr: number of at least 0, or a one-element float tensor.
        momentum: m, in [0, 1); 0 keeps no state.
        dampening: of the momentum, from its second step on; other than 0 costs more launches.
        weight_decay: wd; a group without it takes plain steps of momentum.
        nesterov: needs momentum above 0 and a dampening of 0.
        trust_coefficient: eta.
        eps: added to the denominator of q.

    Raises:
        TypeError, ValueError: naming the argument.

    Examples:
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = LARS(model.parameters(), lr=0.3, momentum=0.9, weight_decay=1e-6)
        >>> model(torch.randn(8, 4)).square().mean().backward()
        >>> optimizer.step()
        >>> sorted(optimizer.state[model.weight])
        ['momentum_buffer']
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        trust_coefficient: float = 0.001,
        eps: float = 1e-8,
    ):
        options = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        super().__init__(params, options | {"nesterov": nesterov, "trust_coefficient": trust_coefficient, "eps": eps})


def cosine_schedule(step: int, max_steps: int, start_value: float, end_value: float, period: int | None = None) -> float:
    """``lightly.utils.scheduler.cosine_schedule``: half a cosine from start_value at step 0 to end_value at step max_steps - 1.

    Args:
        step: whole number of at least 0; beyond ``max_steps`` it warns (RuntimeWarning).
        max_steps: at least 0.
        start_value, end_value: finite numbers.
        period: steps of a whole cycle, which then repeats for ever; ``max_steps`` has no effect.

    Raises:
        TypeError, ValueError: naming the argument.

    Examples:
        >>> [round(cosine_schedule(step, 5, 0.9, 1.0), 3) for step in range(5)]
        [0.9, 0.915, 0.95, 0.985, 1.0]
    """
    op = "cosine_schedule"
    step = check_whole(op, "step", step, 0)
    max_steps = check_whole(op, "max_steps", max_steps, 0)
    for name, value in (("start_value", start_value), ("end_value", end_value)):
        check_number(op, name, value)
    if period is not None:
        check_number(op, "period", period)
        if period <= 0:
            raise ValueError(f"{op}: period must be above 0, got {period}")
        turn = 2 * step / period
    else:
        if step > max_steps:
            warnings.warn(f"{op}: step {step} is beyond max_steps = {max_steps}", RuntimeWarning, stacklevel=2)
        if step >= max_steps - 1:
            return float(end_value)
        turn = step / (max_steps - 1)
    return float(end_value - (end_value - start_value) * (math.cos(math.pi * turn) + 1) / 2)


# --- lightly.models.utils: tokens, masks, patches -------------------------------------------------------------------------


def random_token_mask(
    size: tuple[int, int],
    mask_ratio: float = 0.6,
    mask_class_token: bool = False,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """``fastssl.functional.random_token_mask`` with one ``torch.rand(N, L)``: a seed gives the tokens that lightly gives.

    Args:
        size: (N, L), the class token included.
        mask_ratio: share of the tokens that is masked, in [0, 1].
        mask_class_token: whether token 0 may be masked.
        device: of the result; by default the CPU.

    Returns:
        index_keep (N, K) and index_mask (N, L - K), int64, in the order of the noise.

    Raises:
        TypeError, ValueError: naming the argument.

    Examples:
        >>> index_keep, index_mask = random_token_mask((2, 17), mask_ratio=0.75)
        >>> index_keep.shape, index_mask.shape
        (torch.Size([2, 5]), torch.Size([2, 12]))
    """
    return masking.random_token_mask(size, mask_ratio, mask_class_token, device)


def get_at_index(tokens: Tensor, index: Tensor) -> Tensor:
    """The tokens at given places: ``gather_tokens``, or ``torch.gather`` where tokens are no floats.

    Args:
        tokens: (N, L, D).
        index: (N, K) int64.

    Returns:
        (N, K, D).

    Raises:
        TypeError, ValueError: as ``gather_tokens``.

    Examples:
        >>> tokens = torch.arange(6.0).view(1, 3, 2)
        >>> get_at_index(tokens, torch.tensor([[2, 0]]))
        tensor([[[4., 5.],
                 [0., 1.]]])
    """
    if isinstance(tokens, Tensor) and not tokens.is_floating_point():
        return tokens.gather(1, index[:, :, None].expand(-1, -1, tokens.shape[-1]))
    return gather_tokens(tokens, index)


def set_at_index(tokens: Tensor, index: Tensor, value: Tensor | float) -> Tensor:
    """A copy of the tokens with other values at given places. Differentiable in tokens and value.

    Args:
        tokens: (N, L, D) float.
        index: (N, K) int64. Which value stays where an index repeats is left open, as there.
        value: (N, K, D) in the dtype of ``tokens``, or a number.

    Returns:
        (N, L, D).

    Raises:
        TypeError, ValueError: wrong shape, dtype or device.

    Examples:
        >>> set_at_index(torch.zeros(1, 3, 2), torch.tensor([[2]]), 1.0)
        tensor([[[0., 0.],
                 [0., 0.],
                 [1., 1.]]])
    """
    op = "set_at_index"
    check_floats(op, "tokens", tokens, "N, L, D")
    check_ids(op, "index", index, tokens.shape[0], "N, K", tokens.shape[1], "tokens", tokens)
    if not isinstance(value, Tensor):
        value = tokens.new_full((), value)
    elif value.shape != (*index.shape, tokens.shape[2]):
        raise ValueError(f"{op}: value must have shape {(*index.shape, tokens.shape[2])}, got {tuple(value.shape)}")
    elif value.dtype != tokens.dtype:
        raise TypeError(f"{op}: tokens and value must have the same dtype, got {tokens.dtype} and {value.dtype}")
    rows = torch.arange(len(tokens), device=tokens.device)[:, None]  # whole rows: half the time of a scatter by elements
    return tokens.index_put((rows, index), value)


def mask_at_index(tokens: Tensor, index: Tensor, mask_token: Tensor) -> Tensor:
    """The tokens with the mask token at given places. Differentiable in both.

    Args:
        tokens: (N, L, D) float. A token that is replaced may be NaN (NaN stays there).
        index: (N, K) int64.
        mask_token: (1, 1, D) float.

    Returns:
        (N, L, D) in the wider dtype of tokens and mask token.

    Raises:
        TypeError, ValueError: wrong shape, dtype or device.

    Examples:
        >>> mask_at_index(torch.zeros(1, 3, 2), torch.tensor([[0, 2]]), torch.ones(1, 1, 2))[0, :, 0]
        tensor([1., 0., 1.])
    """
    op = "mask_at_index"
    check_floats(op, "tokens", tokens, "N, L, D")
    check_ids(op, "index", index, tokens.shape[0], "N, K", tokens.shape[1], "tokens", tokens)
    mask = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device).scatter_(1, index, True)
    return _masked(op, tokens, mask, mask_token)


def mask_bool(tokens: Tensor, mask: Tensor, mask_token: Tensor) -> Tensor:
    """The tokens with the mask token where a mask is not 0. Differentiable in tokens and mask token.

    Args:
        tokens: (N, L, D) float.
        mask: (N, L) of any dtype; not 0 where the mask token is to stand.
        mask_token: (1, 1, D) float.

    Returns:
        (N, L, D) in the wider dtype of tokens and mask token.

    Raises:
        TypeError, ValueError: wrong shape, dtype or device.

    Examples:
        >>> mask_bool(torch.zeros(1, 3, 2), torch.tensor([[True, False, True]]), torch.ones(1, 1, 2))[0, :, 0]
        tensor([1., 0., 1.])
    """
    op = "mask_bool"
    check_floats(op, "tokens", tokens, "N, L, D")
    if not isinstance(mask, Tensor) or mask.shape != tokens.shape[:2]:
        got = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"{op}: mask must be a tensor {tuple(tokens.shape[:2])}, one entry for each token, got {got}")
    return _masked(op, tokens, mask.to(torch.bool), mask_token)


def _masked(op: str, tokens: Tensor, mask: Tensor, mask_token: Tensor) -> Tensor:
    """tokens (N, L, D), mask (N, L) bool, mask_token: D elements -> (N, L, D)."""
    check_floats(op, "mask_token", mask_token, "1, 1, D")
    if mask_token.numel() != tokens.shape[2]:
        raise ValueError(f"{op}: mask_token must have shape (1, 1, {tokens.shape[2]}), got {tuple(mask_token.shape)}")
    return torch.where(mask[:, :, None], mask_token, tokens)


def repeat_token(token: Tensor, size: tuple[int, int]) -> Tensor:
    """Copies of one token for all places of all samples.

    Args:
        token: (1, 1, D) float.
        size: (N, L).

    Returns:
        (N, L, D), a copy.

    Raises:
        TypeError, ValueError: ``token`` is no float tensor of three dimensions.

    Examples:
        >>> repeat_token(torch.ones(1, 1, 8), (2, 5)).shape
        torch.Size([2, 5, 8])
    """
    check_floats("repeat_token", "token", token, "1, 1, D")
    return token.repeat(*size, 1)


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Images as rows of patches: ``fastssl.functional.patchify``.

    Args:
        images: (N, C, H, W) float.
        patch_size: p, which divides H and W.

    Returns:
        (N, L, C p p), the entries of a patch in the order (p, q, c).

    Raises:
        TypeError, ValueError: as ``fastssl.functional.patchify``.

    Examples:
        >>> patchify(torch.rand(2, 3, 8, 8), 4).shape
        torch.Size([2, 4, 48])
    """
    return masking.patchify(images, patch_size)


def unpatchify(patches: Tensor, patch_size: int, channels: int = 3) -> Tensor:
    """Patches back to images: ``fastssl.functional.unpatchify``.

    Args:
        patches: (N, L, C p p) float, L a square number.
        patch_size: p.
        channels: C.

    Returns:
        (N, C, H, W).

    Raises:
        TypeError, ValueError: patches of another number of entries, or an L that is no square.

    Examples:
        >>> images = torch.rand(2, 3, 8, 8)
        >>> torch.equal(unpatchify(patchify(images, 4), 4), images)
        True
    """
    check_floats("unpatchify", "patches", patches, "N, L, P")
    if patches.shape[2] != channels * patch_size**2:
        raise ValueError(f"unpatchify: patches must have {channels * patch_size**2} entries, got {patches.shape[2]}")
    return masking.unpatchify(patches, patch_size)


def normalize_mean_var(x: Tensor, dim: int = -1, eps: float = 1.0e-6) -> Tensor:
    """``(x - mean) / sqrt(var + eps)`` along a dimension, with the unbiased variance.

    ``masked_patch_loss`` does this to its targets by itself.

    Args:
        x: float, of any shape.
        dim: the dimension over which mean and variance are taken.
        eps: added to the variance.

    Returns:
        A tensor of the shape of ``x``.

    Examples:
        >>> normalize_mean_var(torch.tensor([1.0, 2.0, 3.0])).round(decimals=3)
        tensor([-1.,  0.,  1.])
    """
    var, mean = torch.var_mean(x, dim=dim, keepdim=True)
    return (x - mean) / (var + eps).sqrt()


# --- lightly.models.modules.MaskedVisionTransformerTIMM -------------------------------------------------------------------


def vit_preprocess(
    self, images: Tensor, idx_mask: Tensor | None = None, idx_keep: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Method ``preprocess``: images (N, C, H, W) -> tokens with positions (N, P + L, E), or those of idx_keep (N, K, E).

    Where only ``idx_keep`` is given, only its patches are embedded, unless a subclass, a hook, a dropout or a norm could see the
    difference. idx_mask and idx_keep (N, K) int64 in [0, P + L); mask (N, P + L), not 0 = masked.

    TypeError, ValueError: idx_mask and mask both given; as ``mask_at_index``, ``mask_bool``, ``embed_visible``, ``gather_tokens``.
    """
    if idx_mask is not None and mask is not None:
        raise ValueError("preprocess: only one of idx_mask and mask can be given")
    if idx_keep is not None and idx_mask is None and mask is None and _embeds_kept(self, images):
        return _embed_at(self.vit, images, idx_keep)
    tokens = self.prepend_prefix_tokens(self.images_to_tokens(images))
    if idx_mask is not None:
        tokens = mask_at_index(tokens, idx_mask, self.mask_token)
    elif mask is not None:
        tokens = mask_bool(tokens, mask, self.mask_token)
    tokens = self.add_pos_embed(tokens)
    return tokens if idx_keep is None else get_at_index(tokens, idx_keep)


def _embeds_kept(self, images: Tensor) -> bool:
    drop = self.vit.pos_drop
    return (
        type(self).__name__ == "MaskedVisionTransformerTIMM"
        and type(self).__module__.startswith("lightly.")
        and plain_patch_embed(self.vit.patch_embed, images)
        and unwatched(drop)
        and not (drop.training and getattr(drop, "p", 0.0))
    )


def _embed_at(vit: nn.Module, images: Tensor, idx_keep: Tensor) -> Tensor:
    """images (N, C, H, W), idx_keep (N, K) in [0, P + L) -> (N, K, E), prefix tokens wherever they stand in it."""
    prefix = [token for token in (vit.cls_token, vit.reg_token) if token is not None]
    before, length = sum(token.shape[1] for token in prefix), vit.patch_embed.num_patches
    check_ids("preprocess", "idx_keep", idx_keep, len(images), "N, K", before + length, "images", images)
    projection, positions = vit.patch_embed.proj, vit.pos_embed
    ids = (idx_keep - before).clamp_min(0)
    tokens = embed_visible(images, projection.weight, ids, projection.bias, pos_embed=positions[:, -length:])
    tokens = tokens.to(torch.promote_types(tokens.dtype, positions.dtype))
    if not prefix:
        return tokens
    front = torch.cat(prefix, 1)
    if not vit.no_embed_class:
        front = front + positions[:, :before]
    for place in range(before):
        tokens = torch.where((idx_keep == place)[:, :, None], front[:, place : place + 1], tokens)
    return tokens
