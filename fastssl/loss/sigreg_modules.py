"""SIGReg, LeJEPA and VISReg as modules with lightly's arguments and state keys."""

from typing import Any

import torch
from torch import Tensor, nn

from fastssl.checks import check_flag, check_share, check_weight
from fastssl.distributed import world_size
from fastssl.distributed.ranks import Ranks

from .parts.directions import check_slices
from .sigreg import Sketch, lejepa_loss, sigreg
from .visreg import VISRegTerms, check_eps, visreg


class SIGRegLoss(nn.Module):
    """``sigreg`` with the arguments and buffers of lightly's ``SIGReg``: fresh random directions at each call.

    Directions come from torch's default generator, as lightly draws them: after the same seed a float32 loss is lightly's.

    Args:
        knots: K, from 2 to 1024.
        t_max: the last knot, above 0 and at most 1024.
        num_vectors: S, the number of directions.
        gather_distributed: whether the samples of all processes are one batch, uneven ones included. Directions are then made from
            a seed of the first process.

    Raises:
        TypeError, ValueError: a wrong argument, which the message names.

    Examples:
        >>> criterion = SIGRegLoss(num_vectors=256)
        >>> sorted(criterion.state_dict())
        ['phi', 't', 'weights']
        >>> criterion(torch.randn(2, 64, 16)).shape
        torch.Size([])
    """

    t: Tensor
    phi: Tensor
    weights: Tensor

    def __init__(self, *, knots: int = 17, t_max: float = 3.0, num_vectors: int = 1024, gather_distributed: bool = False):
        super().__init__()
        sketch = Sketch("SIGRegLoss", num_vectors, knots, t_max)
        check_flag("SIGRegLoss", "gather_distributed", gather_distributed)
        self.knots, self.t_max, self.num_vectors = sketch.knots, sketch.t_max, sketch.slices
        self.gather_distributed = bool(gather_distributed)
        t = torch.linspace(0, self.t_max, self.knots, dtype=torch.float32)
        phi = torch.exp(-0.5 * t * t)
        weights = torch.full_like(t, 2 * self.t_max / (self.knots - 1))
        weights[[0, -1]] *= 0.5
        for name, value in (("t", t), ("phi", phi), ("weights", weights * phi)):
            self.register_buffer(name, value)

    def how(self, proj: Tensor) -> dict[str, Any]:
        """The arguments of a call of ``sigreg``."""
        made: dict[str, Any] = {"slices": self.num_vectors, "knots": self.knots, "t_max": self.t_max}
        return made | random_directions(proj, self.num_vectors, self.gather_distributed)

    def forward(self, proj: Tensor) -> Tensor:
        """The loss of embeddings ``proj`` (..., N, D), each (N, D) of which is a batch of its own. Errors as ``sigreg``."""
        if isinstance(proj, Tensor) and proj.dim() > 3:
            proj = proj.flatten(0, -3)
        return sigreg(proj, **self.how(proj))


def random_directions(proj: Tensor, count: int, gather_distributed: bool) -> dict[str, Any]:
    """As arguments of ``sigreg``: new directions (D, S), or the processes whose samples are one batch."""
    if gather_distributed and world_size() > 1:
        return {"group": Ranks()}
    if not isinstance(proj, Tensor) or not proj.is_floating_point() or proj.dim() < 2:
        return {}  # what was given is refused by the loss
    normal = torch.randn(proj.shape[-1], count, device=proj.device, dtype=proj.dtype)
    wide = torch.promote_types(proj.dtype, torch.float32)
    return {"directions": (normal / torch.linalg.vector_norm(normal, dim=0, dtype=wide)).to(proj.dtype)}


def joined_views(op: str, local_proj: Tensor, global_proj: Tensor) -> tuple[Tensor, int]:
    """All views (Vg + Vl, N, D), global ones first, and the number of global ones."""
    for name, value in (("local_proj", local_proj), ("global_proj", global_proj)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor (V, N, D), got {type(value).__name__}")
        if value.dim() != 3 or 0 in value.shape:
            raise ValueError(f"{op}: {name} must have shape (V, N, D), no side of it 0, got {tuple(value.shape)}")
    if local_proj.shape[1:] != global_proj.shape[1:]:
        got = f"{tuple(local_proj.shape)} and {tuple(global_proj.shape)}"
        raise ValueError(f"{op}: local_proj and global_proj must agree in N and D, got {got}")
    return torch.cat([global_proj, local_proj]), global_proj.shape[0]


class LeJEPALoss(nn.Module):
    """``lejepa_loss`` with the arguments of lightly's ``LeJEPALoss``.

    Args:
        lambda_param: the weight of SIGReg, in [0, 1]; the invariance has 1 - lambda.
        gather_distributed: whether the samples of all processes are one batch.
        sigreg_knots: K.
        sigreg_t_max: the last knot.
        sigreg_num_vectors: S, the number of directions.

    Raises:
        TypeError, ValueError: a wrong argument, which the message names.

    Examples:
        >>> criterion = LeJEPALoss()
        >>> criterion(local_proj=torch.randn(6, 32, 16), global_proj=torch.randn(2, 32, 16)).shape
        torch.Size([])
    """

    def __init__(
        self,
        lambda_param: float = 0.05,
        gather_distributed: bool = False,
        sigreg_knots: int = 17,
        sigreg_t_max: float = 3.0,
        sigreg_num_vectors: int = 1024,
    ):
        super().__init__()
        check_share("LeJEPALoss", "lambda_param", lambda_param)
        self.lambda_param = lambda_param
        self.sigreg = SIGRegLoss(
            knots=sigreg_knots, t_max=sigreg_t_max, num_vectors=sigreg_num_vectors, gather_distributed=gather_distributed
        )

    def forward(self, *, local_proj: Tensor, global_proj: Tensor) -> Tensor:
        """The loss of local views (Vl, N, D) and global views (Vg, N, D), a scalar.

        Raises:
            TypeError, ValueError: shapes that do not fit, or as ``lejepa_loss``.
        """
        z, count = joined_views("LeJEPALoss", local_proj, global_proj)
        return lejepa_loss(z, global_views=count, lambda_param=self.lambda_param, **self.sigreg.how(z))


class VISRegLoss(nn.Module):
    """``visreg`` with the arguments of lightly's ``VISRegLoss``.

    Args:
        lambda_param: the weight of the three regularisers, in [0, 1]; the invariance has 1 - lambda.
        num_slices: S, the number of directions.
        lambda_scale: the weight of the scale term.
        lambda_shape: the weight of the shape term.
        lambda_center: the weight of the centre term.
        gather_distributed: whether the samples of all processes are one batch.
        eps: what is added to a standard deviation before it divides.

    Raises:
        TypeError, ValueError: a wrong argument, which the message names.

    Examples:
        >>> criterion = VISRegLoss(num_slices=64)
        >>> criterion.forward_components(local_proj=torch.randn(6, 32, 16), global_proj=torch.randn(2, 32, 16))._fields
        ('total', 'pred', 'scale', 'shape', 'center')
    """

    def __init__(
        self,
        lambda_param: float = 0.9,
        num_slices: int = 4096,
        lambda_scale: float = 1.0,
        lambda_shape: float = 1.0,
        lambda_center: float = 1.0,
        gather_distributed: bool = False,
        eps: float = 1e-4,
    ):
        super().__init__()
        op = "VISRegLoss"
        check_share(op, "lambda_param", lambda_param)
        for name, value in (("lambda_scale", lambda_scale), ("lambda_shape", lambda_shape), ("lambda_center", lambda_center)):
            check_weight(op, name, value)
        check_eps(op, eps)
        check_flag(op, "gather_distributed", gather_distributed)
        self.lambda_param, self.eps, self.gather_distributed = lambda_param, eps, bool(gather_distributed)
        self.num_slices = check_slices(op, "num_slices", num_slices)
        self.lambda_scale, self.lambda_shape, self.lambda_center = lambda_scale, lambda_shape, lambda_center

    def forward(self, *, local_proj: Tensor, global_proj: Tensor) -> Tensor:
        """The loss of local views (Vl, N, D) and global views (Vg, N, D), a scalar. Errors as ``forward_components``."""
        return self.forward_components(local_proj=local_proj, global_proj=global_proj).total

    def forward_components(self, *, local_proj: Tensor, global_proj: Tensor) -> VISRegTerms:
        """The loss and its terms.

        Raises:
            TypeError, ValueError: shapes that do not fit, or as ``visreg``.
        """
        z, count = joined_views("VISRegLoss", local_proj, global_proj)
        weights = (self.lambda_scale, self.lambda_shape, self.lambda_center)
        made = random_directions(z, self.num_slices, self.gather_distributed)
        how: dict[str, Any] = {"global_views": count, "lambda_param": self.lambda_param, "slices": self.num_slices, "eps": self.eps}
        terms = visreg(z, weights=weights, return_terms=True, **how, **made)
        assert isinstance(terms, VISRegTerms)
        return terms
