"""Drop-ins for solo-learn 1.0.6: ``solo.utils.momentum`` and the losses of MoCo v2+, SimCLR, BYOL, MAE, at its scales.

Methods there bind the names at import: ``solo.methods.mocov2plus.mocov2plus_loss_func = mocov2plus_loss_func``,
``solo.methods.base.MomentumUpdater = MomentumUpdater``; ``fastssl.patch("solo")`` finds them all.
"""

import math

import torch
from torch import Tensor, nn

from fastssl.distributed import world_size
from fastssl.loss._common import dot_rows, softplus, unit_rows
from fastssl.loss.cosine import byol_loss
from fastssl.loss.moco import moco_loss
from fastssl.ops._checks import INTEGERS, check_matrix, check_number, check_scalar, check_vector
from fastssl.ops.patch_loss import masked_patch_loss
from fastssl.ops.similarity import similarity_lse

from ._common import average_parameters, check_share, copy_parameters

_NETS = ("online_net", "momentum_net")


def initialize_momentum_params(online_net: nn.Module, momentum_net: nn.Module) -> None:
    """Copies all parameters of ``online_net`` to ``momentum_net``, whose parameters need no gradient from then on."""
    copy_parameters("initialize_momentum_params", _NETS, online_net, momentum_net)


class MomentumUpdater:
    """Momentum update with a cosine schedule of the share that is kept, ``cur_tau``, from ``base_tau`` to ``final_tau``.

    ValueError unless 0 <= base_tau <= final_tau <= 1.
    """

    def __init__(self, base_tau: float = 0.996, final_tau: float = 1.0):
        check_share("MomentumUpdater", "base_tau", base_tau)
        check_share("MomentumUpdater", "final_tau", final_tau)
        if base_tau > final_tau:
            raise ValueError(f"MomentumUpdater: base_tau must be at most final_tau, got {base_tau} and {final_tau}")
        self.base_tau = self.cur_tau = base_tau
        self.final_tau = final_tau

    def update(self, online_net: nn.Module, momentum_net: nn.Module) -> None:
        """momentum_net <- cur_tau momentum_net + (1 - cur_tau) online_net for all parameters, in place; buffers stay."""
        average_parameters("MomentumUpdater.update", _NETS, online_net, momentum_net, self.cur_tau)

    def update_tau(self, cur_step: int, max_steps: int) -> None:
        """Sets ``cur_tau`` for step ``cur_step`` of ``max_steps``: final_tau at the last."""
        check_number("MomentumUpdater.update_tau", "cur_step", cur_step, 0)
        check_number("MomentumUpdater.update_tau", "max_steps", max_steps, 1)
        wave = (math.cos(math.pi * cur_step / max_steps) + 1) / 2
        self.cur_tau = self.final_tau - (self.final_tau - self.base_tau) * wave


def mocov2plus_loss_func(query: Tensor, key: Tensor, queue: Tensor, temperature: float = 0.1) -> Tensor:
    """``moco_loss``: query, key (N, D) of unit length, queue (D, K), one of the two queues of MoCo v2+ -> mean loss."""
    return moco_loss(query, key, queue, temperature)


def byol_loss_func(p: Tensor, z: Tensor, simplified: bool = True) -> Tensor:
    """2 - 2 cos(p, z), averaged; p, z (N, D), no gradient to z. Both values of ``simplified`` are the same computation here."""
    return byol_loss(p, z.detach())


def mae_loss_func(imgs: Tensor, pred: Tensor, mask: Tensor, patch_size: int, norm_pix_loss: bool = True) -> Tensor:
    """``masked_patch_loss`` with solo-learn's default, normalised targets; 0 where nothing is removed (NaN there).

    Args:
        imgs: (N, C, H, W), a constant.
        pred: (N, L, C p p), entries in the order (p, q, c).
        mask: (N, L), 1 = removed.
        patch_size: p.
        norm_pix_loss: targets are normalised patch by patch.

    Returns:
        The mean over the removed patches, float32 (float64 where ``pred`` is).

    Raises:
        TypeError, ValueError, NotImplementedError: as ``masked_patch_loss``.
    """
    return masked_patch_loss(imgs, pred, mask, patch_size, norm_pix_loss=norm_pix_loss, empty="zero")


def simclr_loss_func(z: Tensor, indexes: Tensor, temperature: float = 0.1) -> Tensor:
    """-log of the share of the positives, rows of equal index, in each row's softmax; the N x N matrix is never made.

    ``loss_i = lse_{j != i} s_ij - lse_{j != i, index_j = index_i} s_ij``. With two views it is NT-Xent; with more, or with labels,
    the positives are summed inside the logarithm, unlike ``sup_con``.

    Args:
        z: (N, D), normalised here; float32, bfloat16, float16 or float64.
        indexes: (N,) integers, each at least twice: sample numbers, one time for each view, or labels.
        temperature: number or one-element float tensor, not 0.

    Returns:
        The mean loss, float32 (float64 for float64 input). Memory O(N D + N C), C the largest number of equal indexes, which the
        host reads from the device.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device or temperature, or an index that stands alone (log 0 there).
        NotImplementedError: more than one process; the gather of their rows is not there yet.
    """
    op = "simclr_loss_func"
    check_matrix(op, "z", z, "N, D")
    check_vector(op, "indexes", indexes, len(z), INTEGERS, "z", z)
    check_scalar(op, "temperature", temperature, z, zero=False)
    if world_size() > 1:
        raise NotImplementedError(f"{op}: the gather of other processes' rows is not there yet; run it in one process")
    ids, order = indexes.sort()
    count = torch.unique_consecutive(ids, return_counts=True)[1]
    fewest, most = torch.stack([count.min(), count.max()]).tolist()
    if fewest < 2:
        raise ValueError(f"{op}: each index must appear at least twice, or its row has no positive; one appears once")
    z = unit_rows(z)[order]
    scale = 1.0 / temperature
    negative = similarity_lse(z, z, scale=scale, x_id=ids)
    return softplus(negative - _lse_of_neighbors(z, ids, most, scale)).mean()


def _lse_of_neighbors(z: Tensor, ids: Tensor, most: int, scale: float | Tensor) -> Tensor:
    """Log-sum-exp over the other rows of equal id, z (N, D) sorted by id, runs of at most ``most`` rows -> (N,)."""
    columns = []
    for shift in range(1, most):
        dot = torch.where(ids[shift:] == ids[:-shift], scale * dot_rows(z[shift:], z[:-shift]), -torch.inf)
        columns += [nn.functional.pad(dot, (shift, 0), value=-torch.inf), nn.functional.pad(dot, (0, shift), value=-torch.inf)]
    return torch.stack(columns).logsumexp(0)
