"""Drop-ins for solo-learn 1.0.6: ``solo.utils.momentum``, LARS, and losses at its scales.

The losses are those of MoCo v2+, MoCo v3, SimCLR, NNCLR, BYOL, SimSiam, MAE, DINO and SwAV.

The methods of solo-learn bind the names at import: ``solo.methods.mocov2plus.mocov2plus_loss_func = mocov2plus_loss_func``,
``solo.methods.base.MomentumUpdater = MomentumUpdater``; ``fastssl.patch("solo")`` finds them all.
"""

import math
from typing import cast

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim.optimizer import ParamsT

from fastssl.checks import INTEGERS, check_matrix, check_number, check_scalar, check_vector, check_views
from fastssl.distributed import Ranks, gather_rows, gather_rows_with_grad, world_size
from fastssl.loss.cosine import byol_loss, negative_cosine
from fastssl.loss.info_nce import info_nce
from fastssl.loss.moco import moco_loss
from fastssl.loss.parts.arguments import enter
from fastssl.loss.parts.dot_products import dot_rows, unit_rows
from fastssl.loss.parts.ids import arange_ids
from fastssl.loss.parts.reductions import softplus
from fastssl.ops.similarity import similarity_lse

from ._common import average_parameters, check_share, copy_parameters
from ._lars import Lars
from ._solo_redundancy import barlow_loss_func, vicreg_loss_func
from ._solo_soft import DINOLoss, swav_loss_func
from .mae import patch_loss

__all__ = [
    "LARS",
    "DINOLoss",
    "MomentumUpdater",
    "barlow_loss_func",
    "byol_loss_func",
    "initialize_momentum_params",
    "mae_loss_func",
    "mocov2plus_loss_func",
    "mocov3_loss_func",
    "nnclr_loss_func",
    "simclr_loss_func",
    "simsiam_loss_func",
    "swav_loss_func",
    "vicreg_loss_func",
]

_NETS = ("online_net", "momentum_net")


def initialize_momentum_params(online_net: Module, momentum_net: Module) -> None:
    """Copies all parameters of ``online_net`` to ``momentum_net``, whose parameters need no gradient from then on.

    Args:
        online_net: the student.
        momentum_net: the teacher, with parameters of the same shapes in the same order; written in place.

    Raises:
        TypeError, ValueError: the modules do not belong together; nothing is changed then.

    Examples:
        >>> online, momentum = torch.nn.Linear(4, 2), torch.nn.Linear(4, 2)
        >>> initialize_momentum_params(online, momentum)
        >>> torch.equal(online.weight, momentum.weight), momentum.weight.requires_grad
        (True, False)
    """
    copy_parameters("initialize_momentum_params", _NETS, online_net, momentum_net)


class MomentumUpdater:
    """Momentum update with a cosine schedule of the share that is kept, ``cur_tau``.

    Args:
        base_tau: the share at the first step, from 0 on.
        final_tau: the share at the last step, from ``base_tau`` to 1.

    Raises:
        TypeError, ValueError: unless 0 <= base_tau <= final_tau <= 1.

    Examples:
        >>> updater = MomentumUpdater(0.5, 1.0)
        >>> updater.update(torch.nn.Linear(4, 2), torch.nn.Linear(4, 2))
        >>> updater.update_tau(cur_step=50, max_steps=100)
        >>> updater.cur_tau
        0.75
    """

    def __init__(self, base_tau: float = 0.996, final_tau: float = 1.0):
        check_share("MomentumUpdater", "base_tau", base_tau)
        check_share("MomentumUpdater", "final_tau", final_tau)
        if base_tau > final_tau:
            raise ValueError(f"MomentumUpdater: base_tau must be at most final_tau, got {base_tau} and {final_tau}")
        self.base_tau = self.cur_tau = base_tau
        self.final_tau = final_tau

    def update(self, online_net: Module, momentum_net: Module) -> None:
        """momentum_net <- cur_tau momentum_net + (1 - cur_tau) online_net for all parameters, in place; buffers stay."""
        average_parameters("MomentumUpdater.update", _NETS, online_net, momentum_net, self.cur_tau)

    def update_tau(self, cur_step: int, max_steps: int) -> None:
        """Sets ``cur_tau`` for step ``cur_step`` of ``max_steps``: final_tau at the last."""
        check_number("MomentumUpdater.update_tau", "cur_step", cur_step, 0)
        check_number("MomentumUpdater.update_tau", "max_steps", max_steps, 1)
        wave = (math.cos(math.pi * cur_step / max_steps) + 1) / 2
        self.cur_tau = self.final_tau - (self.final_tau - self.base_tau) * wave


def mocov2plus_loss_func(query: Tensor, key: Tensor, queue: Tensor, temperature: float = 0.1) -> Tensor:
    """MoCo's loss, ``moco_loss``, at solo-learn's scale.

    Args:
        query: (N, D) of unit length.
        key: (N, D) of unit length, without gradient.
        queue: (D, K), one of the two queues of MoCo v2+.
        temperature: number or one-element float tensor, not 0.

    Returns:
        The mean loss, float32 (float64 for float64 input).

    Raises:
        TypeError, ValueError: as ``moco_loss``.

    Examples:
        >>> query, key = (torch.nn.functional.normalize(torch.randn(4, 8), dim=1) for _ in range(2))
        >>> mocov2plus_loss_func(query, key, torch.nn.functional.normalize(torch.randn(8, 32), dim=0)).shape
        torch.Size([])
    """
    return cast("Tensor", moco_loss(query, key, queue, temperature))  # without statistics


def byol_loss_func(p: Tensor, z: Tensor, simplified: bool = True) -> Tensor:
    """BYOL's loss 2 - 2 cos(p, z), averaged over the rows.

    Args:
        p: (..., D), the predictions.
        z: (..., D), the targets, which get no gradient.
        simplified: both values are the same computation here.

    Returns:
        The mean loss, float32 (float64 for float64 input).

    Raises:
        TypeError, ValueError: as ``byol_loss``.

    Examples:
        >>> p = torch.randn(4, 8)
        >>> round(byol_loss_func(p, -p).item(), 4)
        4.0
    """
    return byol_loss(p.flatten(0, -2), z.detach().flatten(0, -2))


def mae_loss_func(imgs: Tensor, pred: Tensor, mask: Tensor, patch_size: int, norm_pix_loss: bool = True) -> Tensor:
    """``masked_patch_loss`` with solo-learn's default, normalised targets; 0 where nothing is removed (solo-learn gives NaN).

    Args:
        imgs: (N, C, H, W).
        pred: (N, L, C p p), entries in the order (p, q, c).
        mask: (N, L), 1 = removed.
        patch_size: p.
        norm_pix_loss: targets are normalised patch by patch.

    Returns:
        The mean over the removed patches, float32 (float64 where ``pred`` is).

    Raises:
        TypeError, ValueError, NotImplementedError: as ``masked_patch_loss``.

    Examples:
        >>> images, pred = torch.rand(2, 3, 8, 8), torch.rand(2, 4, 48)
        >>> mae_loss_func(images, pred, torch.tensor([[1.0, 0.0, 0.0, 1.0]] * 2), patch_size=4).shape
        torch.Size([])
    """
    return patch_loss(imgs, pred, mask, patch_size, norm_pix_loss)


def simclr_loss_func(z: Tensor, indexes: Tensor, temperature: float = 0.1) -> Tensor:
    """-log of the share of the positives, rows of equal index, in each row's softmax; the N x N matrix is never made.

    ``loss_i = lse_{j != i} s_ij - lse_{j != i, index_j = index_i} s_ij``. With two views it is NT-Xent; with more, or with labels,
    the positives are summed inside the logarithm, unlike ``sup_con``. In several processes j runs over the rows of all of them.

    Args:
        z: (N, D), normalised here; float32, bfloat16, float16 or float64. Every process must bring as many rows.
        indexes: (N,) integers: sample numbers, one time for each view, or labels. A row whose index no other row has gets no
            positive: the loss is infinite, as in solo-learn.
        temperature: number or one-element float tensor, not 0.

    Returns:
        The mean loss over this process's rows, float32 (float64 for float64 input). Memory O(M D + N C) with M rows in all
        processes and C the largest number of equal indexes, which the host reads from the device.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device or temperature.

    Examples:
        >>> z = torch.randn(16, 8)
        >>> loss = simclr_loss_func(z, torch.arange(8).repeat(2), temperature=0.2)  # two views of eight images
        >>> from fastssl.functional import nt_xent
        >>> torch.allclose(loss, nt_xent(z[:8], z[8:], 0.2))
        True
    """
    op = "simclr_loss_func"
    (z,) = enter(op, z)
    check_matrix(op, "z", z, "N, D")
    check_vector(op, "indexes", indexes, len(z), INTEGERS, "z", z)
    check_scalar(op, "temperature", temperature, z, zero=False)
    z, scale = unit_rows(z), 1.0 / temperature
    keys, first = gather_rows_with_grad(z)
    ids, order = gather_rows(indexes, even=True).sort()
    start = torch.searchsorted(ids, indexes)  # the first of the rows with this index, in their order
    count = torch.searchsorted(ids, indexes, right=True) - start
    if len(keys) == len(z):
        negative = similarity_lse(z, z, scale=scale, x_id=indexes)
    else:
        negative = similarity_lse(z, keys, scale=scale, x_id=indexes, y_id=ids[order.argsort()])
    own, dots = arange_ids(z, first), []
    for shift in range(int(count.max())):
        other = order[(start + shift).clamp_max(len(order) - 1)]
        here = (shift < count) & (other != own)
        dots.append(torch.where(here, scale * dot_rows(z, keys[other]), -torch.inf))
    return softplus(negative - torch.stack(dots).logsumexp(0)).mean()


def mocov3_loss_func(query: Tensor, key: Tensor, temperature: float = 0.2) -> Tensor:
    """The loss of MoCo v3: 2 temperature times the cross-entropy of each query's own key among the keys of all processes.

    Args:
        query: (N, D), brought to unit length here. Where processes bring unequally many rows, each gets its share of the mean over
            the joined batch, as from ``info_nce`` with ``group=``.
        key: (N, D), brought to unit length here. It gets a gradient in one process, and none in several.
        temperature: number or one-element float tensor, not 0.

    Returns:
        The mean loss, float32 (float64 for float64 input).

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device or temperature.

    Examples:
        >>> query, key = torch.randn(4, 8, requires_grad=True), torch.randn(4, 8)
        >>> mocov3_loss_func(query, key, temperature=0.2).backward()
        >>> query.grad.shape
        torch.Size([4, 8])
    """
    return 2.0 * temperature * of_own_key("mocov3_loss_func", query, key, temperature, "query", "key", False)


def nnclr_loss_func(nn: Tensor, p: Tensor, temperature: float = 0.1) -> Tensor:
    """The loss of NNCLR: cross-entropy of each neighbour's own prediction among the predictions of all processes.

    Args:
        nn: (N, D), the nearest neighbours, brought to unit length here. Where processes bring unequally many rows, each gets its
            share of the mean over the joined batch, as from ``info_nce`` with ``group=``.
        p: (N, D), the predictions, brought to unit length here.
        temperature: number or one-element float tensor, not 0.

    Returns:
        The mean loss, float32 (float64 for float64 input). The gradient goes to both arguments, through the gather too.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device or temperature.

    Examples:
        >>> neighbours, p = torch.randn(4, 8), torch.randn(4, 8, requires_grad=True)
        >>> nnclr_loss_func(neighbours, p, temperature=0.1).backward()
        >>> p.grad.shape
        torch.Size([4, 8])
    """
    return of_own_key("nnclr_loss_func", nn, p, temperature, "nn", "p", True)


def of_own_key(op: str, query: Tensor, key: Tensor, temperature, query_name: str, key_name: str, gradient: bool) -> Tensor:
    """Mean cross-entropy of <query_i, key_j> / temperature with the target j = i, j over the rows of all processes."""
    query, key = enter(op, query, key)
    check_views(op, (query_name, key_name), query, key)
    check_scalar(op, "temperature", temperature, query, zero=False)
    key = key if gradient or world_size() == 1 else key.detach()
    return cast("Tensor", info_nce(query, key, temperature=temperature, group=Ranks()))  # without statistics


def simsiam_loss_func(p: Tensor, z: Tensor, simplified: bool = True) -> Tensor:
    """SimSiam's loss -cos(p, z), averaged over the rows.

    Args:
        p: (..., D), the predictions.
        z: (..., D), the targets, which get no gradient.
        simplified: both values are the same computation here.

    Returns:
        The mean loss, float32 (float64 for float64 input).

    Raises:
        TypeError, ValueError: as ``negative_cosine``.

    Examples:
        >>> p = torch.randn(4, 8)
        >>> round(simsiam_loss_func(p, p).item(), 4)
        -1.0
    """
    return negative_cosine(p.flatten(0, -2), z.detach().flatten(0, -2))


class LARS(Lars):
    """``solo.utils.lars.LARS`` of solo-learn 1.0.6: the same arguments in the same order, group options, state and steps.

    Args:
        params: parameters or groups of them.
        lr: number of at least 0, or a one-element float tensor.
        momentum: m, in [0, 1); 0 keeps no state.
        dampening: of the momentum, from its second step on; other than 0 costs more launches.
        weight_decay: wd; without it the rate is adapted all the same.
        nesterov: needs momentum above 0 and a dampening of 0.
        eta: the trust coefficient.
        eps: added to the denominator of q.
        clip_lr: min(q / lr, 1) in place of q.
        exclude_bias_n_norm: tensors of one dimension are neither adapted nor decayed.

    Raises:
        TypeError, ValueError: naming the argument.

    Examples:
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = LARS(model.parameters(), lr=0.3, momentum=0.9, weight_decay=1e-6, exclude_bias_n_norm=True)
        >>> model(torch.randn(8, 4)).square().mean().backward()
        >>> optimizer.step()
        >>> sorted(optimizer.state[model.weight])
        ['momentum_buffer']
    """

    _trust = "eta"
    _options = ("lr", "momentum", "dampening", "nesterov", "eta", "eps", "clip_lr")

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        eta: float = 1e-3,
        eps: float = 1e-8,
        clip_lr: bool = False,
        exclude_bias_n_norm: bool = False,
    ):
        options = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay, "nesterov": nesterov}
        options |= {"eta": eta, "eps": eps, "clip_lr": clip_lr, "exclude_bias_n_norm": exclude_bias_n_norm}
        super().__init__(params, options)

    def _rule(self, p: Tensor, group: dict) -> tuple[float, bool]:
        adapted = p.dim() != 1 or not group["exclude_bias_n_norm"]
        return (group["weight_decay"] if adapted else 0.0), adapted
