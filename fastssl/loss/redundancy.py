"""Barlow Twins and VICReg: features that must vary, and must not repeat each other, by D x D or by N x N matrices.

    Barlow Twins   x, y: both views, columns of mean 0 and variance 1      c = x^T y / N
                   loss = sum_i (c_ii - 1)^2 + lambda sum_{i != j} c_ij^2
    VICReg         x, y: both views, columns of mean 0                     v_i = sum_a x_ai^2 / (N - 1), and of y
                   loss = lambda sum_ai (z0_ai - z1_ai)^2 / (N D)
                        + mu / 2 (mean_i relu(1 - sqrt(v_i(x) + eps)) + mean_i relu(1 - sqrt(v_i(y) + eps)))
                        + nu / (D (N - 1)^2) sum_{i != j} ((x^T x)_ij^2 + (y^T y)_ij^2)

Both are a sum of squares outside the diagonal, and functions of the diagonal alone: ``ops/squared_products.py``, which never makes
the D x D matrix where there are few rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastssl.checks import (
    check_choice,
    check_dense,
    check_flag,
    check_float_dtype,
    check_like,
    check_number,
    check_scalar,
    check_weight,
    traced,
)
from fastssl.distributed import Ranks
from fastssl.distributed.class_sums import sum_of_all
from fastssl.distributed.squared_products import squared_products as squared_products_of_all
from fastssl.distributed.standardize import standardize_pair as standardize_pair_of_all
from fastssl.ops.squared_products import gram_is_cheaper, squared_products
from fastssl.ops.standardize import standardize_pair

from .parts.arguments import enter, together

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from fastssl.distributed.ranks import Joined

FORMS = ("auto", "gram", "covariance")


def _check(op: str, z0: Tensor, z1: Tensor, form: str, eps: float, positions: bool) -> None:
    """Two views of one batch, of at least one row: (B, D), or (B, ..., D) where there may be ``positions``."""
    letters = "B, ..., D" if positions else "B, D"
    for name, z in (("z0", z0), ("z1", z1)):
        check_dense(op, name, z, f"a tensor ({letters})")
        check_float_dtype(op, name, z)
        if z.dim() < 2 or (z.dim() > 2 and not positions):
            raise ValueError(f"{op}: {name} must have shape ({letters}), got {tuple(z.shape)}")
        if 0 in z.shape:
            raise ValueError(f"{op}: {name} must have shape ({letters}), no side of it 0, got {tuple(z.shape)}")
    if z0.shape != z1.shape:
        raise ValueError(f"{op}: z0 and z1 must have the same shape ({letters}), got {tuple(z0.shape)} and {tuple(z1.shape)}")
    check_like(op, "z1", z1, "z0", z0)
    check_choice(op, "form", form, FORMS)
    check_scalar(op, "eps", eps, z0)
    check_number(op, "eps", eps, 0.0)


def _rows(op: str, z0: Tensor, joined: Joined | None) -> int | Tensor:
    """The number of rows of all processes, at least 2; a tensor () where a graph does not know it."""
    if joined is None:
        count = z0.shape[0]
    elif joined.keep:
        count = joined.world * z0.shape[0] if torch.compiler.is_compiling() else int(joined.counts.sum())
    else:
        return joined.total
    if count < 2:
        raise ValueError(f"{op}: z0 and z1 must have at least 2 rows, of all processes together, got {count}")
    return count


def by_gram(form: str, rows: int | Tensor, width: int) -> bool:
    """Whether N x N matrices are taken. Where a graph does not know the number of rows, ``auto`` takes D x D ones; so does any form
    where D is 1, since nothing is then outside the diagonal, and N x N matrices would give the rounding of what cancels."""
    if width == 1:
        return False
    if form != "auto":
        return form == "gram"
    return not isinstance(rows, Tensor) and gram_is_cheaper(rows, width)


def barlow_twins(
    z0: Tensor,
    z1: Tensor,
    lambda_param: float = 5e-3,
    *,
    group: ProcessGroup | Ranks | None = None,
    form: str = "auto",
    eps: float = 1e-5,
) -> Tensor:
    """Barlow Twins' redundancy reduction (Zbontar et al. 2021, eq. 1) of two views, without the D x D matrix where rows are few.

    ``loss = sum_i (c_ii - 1)^2 + lambda sum_{i != j} c_ij^2``, where c is the correlation of the columns of both views over the
    batch. By default N x N matrices are made where N < 3/4 D, and the D x D matrix otherwise: the same loss, for fewer FLOPs.

    Args:
        z0: (N, D) embeddings of the first view, N >= 2; float32, bfloat16, float16 or float64. They are standardised here.
        z1: (N, D) embeddings of the second view, same dtype and device.
        lambda_param: the weight of the terms outside the diagonal, at least 0.
        group: a process group, or ``fastssl.distributed.Ranks``: mean, variance and correlation are those of the rows of all its
            processes, uneven batches included. Every process gets the loss of the joined batch; DistributedDataParallel's mean of
            the gradients is that of one process with the joined batch. None: this process's rows alone.
        form: "auto", or "gram" for N x N, "covariance" for D x D matrices whatever the shape.
        eps: added to the variance of each column, as in a batch normalisation.

    Returns:
        The loss, a float32 scalar (float64 for float64 input). Memory beyond the standardised rows: 2 N^2 or D^2 numbers.
        Differentiable once.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device, form or number.
        RanksError: the processes of ``group`` make different calls, or one of them is gone.

    Examples:
        >>> z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])  # columns that do not repeat each other
        >>> round(barlow_twins(z, z).item(), 4), round(barlow_twins(z, z.flip(1), lambda_param=0.5).item(), 4)
        (0.0, 3.0)
    """
    op = "barlow_twins"
    z0, z1 = enter(op, z0, z1)
    _check(op, z0, z1, form, eps, False)
    check_weight(op, "lambda_param", lambda_param, z0)
    if eps == 0:
        raise ValueError(f"{op}: eps must be above 0, got {eps}")
    how = {"lambda_param": lambda_param, "form": form, "eps": eps, "grad": (z0.requires_grad, z1.requires_grad)}
    joined = together(op, group, z0, **how)
    rows = _rows(op, z0, joined)
    x, y, _ = standardized(op, z0, z1, float(eps), joined)
    return correlation_loss(op, x, y, lambda_param, rows, by_gram(form, rows, x.shape[1]), joined)


def standardized(
    op: str, a: Tensor, b: Tensor, eps: float | None, joined: Joined | None, moments: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """``standardize_pair`` over the rows of one process or of all."""
    if joined is None:
        return standardize_pair(op, a, b, eps, moments)
    return standardize_pair_of_all(joined, a, b, eps, moments)


def correlation_loss(
    op: str, x: Tensor, y: Tensor, lambda_param: float, rows: int | Tensor, gram: bool, joined: Joined | None
) -> Tensor:
    """Barlow Twins' loss of standardised columns x and y (N, D), whose products are divided by ``rows``."""
    off, diagonal = _squares(op, x[:, None], y[:, None], gram, joined)
    scale: Any = 1.0 / rows
    weight: Any = traced(float(lambda_param), x)
    return (diagonal * scale - 1.0).square().sum() + weight * (off * scale * scale).sum()


def _squares(op: str, x: Tensor, y: Tensor | None, gram: bool, joined: Joined | None) -> tuple[Tensor, Tensor]:
    return squared_products(op, x, y, gram) if joined is None else squared_products_of_all(joined, x, y, gram)


def vicreg(
    z0: Tensor,
    z1: Tensor,
    *,
    lambda_param: float = 25.0,
    mu_param: float = 25.0,
    nu_param: float = 1.0,
    eps: float = 1e-4,
    group: ProcessGroup | Ranks | None = None,
    form: str = "auto",
) -> Tensor:
    """VICReg (Bardes et al. 2022, eq. 6) of two views, without the D x D matrices where rows are few.

    ``lambda mean (z0 - z1)^2 + mu / 2 sum over views of mean_i relu(1 - std_i) + nu sum over views of sum_{i != j} cov_ij^2 / D``.
    The variance term is halved, as in the authors' code and in lightly.

    Args:
        z0: (N, ..., D) embeddings of the first view, N >= 2; float32, bfloat16, float16 or float64. With further dimensions, as in
            (N, H, W, D), standard deviations and covariances are those over N at each position, averaged over the positions.
        z1: (N, ..., D) embeddings of the second view, same dtype and device.
        lambda_param: the weight of the invariance term, at least 0.
        mu_param: the weight of the variance term, at least 0.
        nu_param: the weight of the covariance term, at least 0.
        eps: added to each variance before the square root.
        group: a process group, or ``fastssl.distributed.Ranks``: all three terms are those of the rows of all its processes, as in
            ``barlow_twins``. None: this process's rows alone.
        form: "auto": N x N matrices where N < 3/4 D; or "gram" for N x N, "covariance" for D x D matrices whatever the shape. The
            rounding of N x N matrices is that of the largest variance: where one column has a standard deviation 1000 times that of
            all others, the covariance term is right to 1 %, its gradient to 1e-4. "covariance" has no such limit.

    Returns:
        The loss, a float32 scalar (float64 for float64 input). Differentiable once.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device, form or number.
        RanksError: the processes of ``group`` make different calls, or one of them is gone.

    Examples:
        >>> z = torch.tensor([[2.0, 2.0], [2.0, -2.0], [-2.0, 2.0], [-2.0, -2.0]])  # spread out, nothing repeated
        >>> vicreg(z, z).item(), vicreg(z, z + 1.0).item()  # the second view is 1 away in each number
        (0.0, 25.0)
    """
    op = "vicreg"
    z0, z1 = enter(op, z0, z1)
    _check(op, z0, z1, form, eps, True)
    weights = {"lambda_param": lambda_param, "mu_param": mu_param, "nu_param": nu_param}
    for name, value in weights.items():
        check_weight(op, name, value, z0)
    joined = together(op, group, z0, **weights, form=form, eps=eps, grad=(z0.requires_grad, z1.requires_grad))
    rows, width = _rows(op, z0, joined), z0.shape[-1]
    x, y, apart = standardized(op, z0.flatten(1), z1.flatten(1), None, joined)
    apart = apart.sum() if joined is None else sum_of_all(joined, apart.sum())
    positions = x.shape[1] // width
    gram = by_gram(form, rows, width)
    scale: Any = 1.0 / (rows - 1)
    invariance = apart / rows / x.shape[1]
    variance: Any = 0.0
    covariance: Any = 0.0
    for t in (x, y):
        off, squares = _squares(op, t.unflatten(1, (positions, width)), None, gram, joined)
        variance = variance + torch.relu(1.0 - (squares * scale + float(eps)).sqrt()).mean()
        covariance = covariance + (off * scale * scale).mean() / width
    of_terms: list[Any] = [traced(float(weight), x) for weight in weights.values()]
    return of_terms[0] * invariance + 0.5 * of_terms[1] * variance + of_terms[2] * covariance


class BarlowTwinsLoss(nn.Module):
    """``barlow_twins`` with the arguments of lightly's: ``BarlowTwinsLoss(lambda_param=5e-3, gather_distributed=False)``.

    Args:
        lambda_param: the weight of the terms outside the diagonal, at least 0.
        gather_distributed: whether mean, variance and correlation are those of the rows of all processes. (lightly's module
            averages correlations that each process has standardised by its own mean and variance, which is another loss.)

    Raises:
        TypeError, ValueError: a wrong argument, which the message names.

    Examples:
        >>> criterion = BarlowTwinsLoss()
        >>> z_a, z_b = torch.randn(16, 8, requires_grad=True), torch.randn(16, 8)
        >>> criterion(z_a, z_b).backward()
        >>> z_a.grad.shape
        torch.Size([16, 8])
    """

    def __init__(self, lambda_param: float = 5e-3, gather_distributed: bool = False):
        super().__init__()
        check_weight("BarlowTwinsLoss", "lambda_param", lambda_param)
        check_flag("BarlowTwinsLoss", "gather_distributed", gather_distributed)
        self.lambda_param, self.gather_distributed = lambda_param, gather_distributed

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """The loss of two views.

        Args:
            z_a: (N, D) embeddings of the first view, N >= 2.
            z_b: (N, D) embeddings of the second view.

        Returns:
            A scalar, float32 (float64 for float64 input).

        Raises:
            TypeError, ValueError, RanksError: as ``barlow_twins``.
        """
        return barlow_twins(z_a, z_b, self.lambda_param, group=Ranks() if self.gather_distributed else None)


class VICRegLoss(nn.Module):
    """``vicreg`` with the arguments of lightly's ``VICRegLoss``.

    Args:
        lambda_param: the weight of the invariance term, at least 0.
        mu_param: the weight of the variance term, at least 0.
        nu_param: the weight of the covariance term, at least 0.
        gather_distributed: whether all three terms are those of the rows of all processes.
        eps: added to each variance before the square root.

    Raises:
        TypeError, ValueError: a wrong argument, which the message names.

    Examples:
        >>> criterion = VICRegLoss()
        >>> z_a, z_b = torch.randn(16, 4, 8, requires_grad=True), torch.randn(16, 4, 8)
        >>> criterion(z_a, z_b).backward()
        >>> z_a.grad.shape
        torch.Size([16, 4, 8])
    """

    def __init__(
        self,
        lambda_param: float = 25.0,
        mu_param: float = 25.0,
        nu_param: float = 1.0,
        gather_distributed: bool = False,
        eps: float = 0.0001,
    ):
        super().__init__()
        for name, value in (("lambda_param", lambda_param), ("mu_param", mu_param), ("nu_param", nu_param)):
            check_weight("VICRegLoss", name, value)
        check_number("VICRegLoss", "eps", eps, 0.0)
        check_flag("VICRegLoss", "gather_distributed", gather_distributed)
        self.lambda_param, self.mu_param, self.nu_param = lambda_param, mu_param, nu_param
        self.gather_distributed, self.eps = gather_distributed, eps

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """The loss of two views.

        Args:
            z_a: (N, ..., D) embeddings of the first view, N >= 2.
            z_b: (N, ..., D) embeddings of the second view.

        Returns:
            A scalar, float32 (float64 for float64 input).

        Raises:
            TypeError, ValueError, RanksError: as ``vicreg``.
        """
        return vicreg(
            z_a,
            z_b,
            lambda_param=self.lambda_param,
            mu_param=self.mu_param,
            nu_param=self.nu_param,
            eps=self.eps,
            group=Ranks() if self.gather_distributed else None,
        )
