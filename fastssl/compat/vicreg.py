"""For the VICReg repository: its loss behind the expander, as a function and as the forward of its ``VICReg``, and its gather."""

from __future__ import annotations

from torch import Tensor

from fastssl.checks import check_views, check_weight, check_whole
from fastssl.distributed import Ranks, gather_rows_with_grad
from fastssl.distributed.collectives import world_size
from fastssl.loss.parts.arguments import enter
from fastssl.loss.redundancy import vicreg

__all__ = ["batch_all_gather", "forward", "vicreg_loss"]


def vicreg_loss(
    x: Tensor,
    y: Tensor,
    sim_coeff: float = 25.0,
    std_coeff: float = 25.0,
    cov_coeff: float = 1.0,
    batch_size: int | None = None,
) -> Tensor:
    """The loss of the repository's ``VICReg.forward`` behind the expander, over the rows of all processes.

    Args:
        x: (N, D) embeddings of the first view.
        y: (N, D) embeddings of the second view.
        sim_coeff: the weight of the invariance term.
        std_coeff: the weight of the variance term, half of which each view counts.
        cov_coeff: the weight of the covariance term.
        batch_size: the number of rows of all processes, less 1 of which the covariances are divided by. None: as many as there are.

    Returns:
        The loss, a float32 scalar (float64 for float64). Under DistributedDataParallel its gradient is that of one process with the
        joined batch, as there.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device or number.
        RanksError: processes make different calls.

    Examples:
        >>> x = torch.randn(16, 8, requires_grad=True)
        >>> vicreg_loss(x, torch.randn(16, 8), batch_size=16).backward()
        >>> x.grad.shape
        torch.Size([16, 8])
    """
    op = "vicreg_loss"
    x, y = enter(op, x, y)
    check_views(op, ("x", "y"), x, y)
    for name, value in (("sim_coeff", sim_coeff), ("std_coeff", std_coeff), ("cov_coeff", cov_coeff)):
        check_weight(op, name, value, x)
    if batch_size is not None:
        rows = check_whole(op, "batch_size", batch_size, 2) - 1
        cov_coeff = cov_coeff * ((len(x) * world_size() - 1) / rows) ** 2  # equally many rows in each process, as there
    return vicreg(x, y, lambda_param=sim_coeff, mu_param=std_coeff, nu_param=cov_coeff, group=Ranks())


def forward(self, x: Tensor, y: Tensor) -> Tensor:
    """``VICReg.forward`` of the repository: the loss of two batches of views (N, 3, H, W).

    Args:
        self: the repository's module, with ``backbone``, ``projector`` and ``args`` (the coefficients and ``batch_size``).
        x: the first views.
        y: the second views.

    Returns:
        The loss, a float32 scalar (float64 for float64).

    Raises:
        TypeError, ValueError, RanksError: as ``vicreg_loss``.

    Examples:
        >>> from types import SimpleNamespace
        >>> args = SimpleNamespace(sim_coeff=25.0, std_coeff=25.0, cov_coeff=1.0, batch_size=4)
        >>> model = SimpleNamespace(backbone=torch.nn.Flatten(), projector=torch.nn.Linear(12, 8), args=args)
        >>> forward(model, torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)).shape
        torch.Size([])
    """
    args = self.args
    x, y = self.projector(self.backbone(x)), self.projector(self.backbone(y))
    return vicreg_loss(x, y, args.sim_coeff, args.std_coeff, args.cov_coeff, args.batch_size)


def batch_all_gather(x: Tensor) -> Tensor:
    """The rows of all processes with gradient, which the backward adds over processes: the repository's ``FullGatherLayer``.

    Args:
        x: (N, ...), of one shape in every process.

    Returns:
        (W N, ...) in rank order; in one process ``x`` itself.

    Raises:
        TypeError, ValueError: as ``gather_rows_with_grad``.

    Examples:
        >>> batch_all_gather(torch.ones(4, 2)).shape
        torch.Size([4, 2])
    """
    return gather_rows_with_grad(x)[0]
