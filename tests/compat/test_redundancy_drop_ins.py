"""The drop-ins for Barlow Twins and VICReg beside the formulas of the repositories and of solo-learn, in one process."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastssl
from fastssl.compat import barlow, solo, vicreg
from fastssl.functional import vicreg as vicreg_of
from fastssl.testing import redundancy as plain
from fastssl.testing.compare import relative_error


def off_diagonal(c):
    return c.masked_fill(torch.eye(len(c), dtype=torch.bool), 0.0)


class BarlowTwins(nn.Module):
    """The repository's, with a projector of one layer."""

    def __init__(self, args):
        super().__init__()
        self.args, self.backbone, self.projector = args, nn.Flatten(), nn.Linear(12, 6, bias=False)
        self.bn = nn.BatchNorm1d(6, affine=False)

    def forward(self, y1, y2):
        z1, z2 = (self.projector(self.backbone(y)) for y in (y1, y2))
        c = self.bn(z1).T @ self.bn(z2) / self.args.batch_size
        return (c.diagonal() - 1).square().sum() + self.args.lambd * off_diagonal(c).square().sum()


class VICReg(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.args, self.backbone, self.projector = args, nn.Flatten(), nn.Linear(12, 6, bias=False)

    def forward(self, x, y):
        x, y = (self.projector(self.backbone(t)) for t in (x, y))
        loss = self.args.sim_coeff * F.mse_loss(x, y)
        for t in (x, y):
            covariance = (t - t.mean(0)).T @ (t - t.mean(0)) / (self.args.batch_size - 1)
            loss = loss + self.args.std_coeff * F.relu(1 - (t.var(0) + 1e-4).sqrt()).mean() / 2
            loss = loss + self.args.cov_coeff * off_diagonal(covariance).square().sum() / t.shape[1]
        return loss


def images(seed=0):
    return torch.randn(2, 9, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).unbind()


def results(model, sides):
    model.zero_grad()
    loss = model(*sides)
    loss.backward()
    return [loss.detach(), model.projector.weight.grad.clone(), *model.state_dict().values()]


@pytest.mark.parametrize("batch_size", [9, 12])
@pytest.mark.parametrize(
    "library, cls, args",
    [
        ("barlow", BarlowTwins, {"lambd": 0.02}),
        ("vicreg", VICReg, {"sim_coeff": 25.0, "std_coeff": 20.0, "cov_coeff": 2.0}),
    ],
)
def test_the_repositorys_forward_swapped(library, cls, args, batch_size):
    torch.manual_seed(1)
    model = cls(SimpleNamespace(**args, batch_size=batch_size)).double()
    state = {name: t.clone() for name, t in model.state_dict().items()}

    def three() -> list:
        model.load_state_dict(state)
        return [*results(model.train(), images(0)), *results(model, images(1)), *results(model.eval(), images(2))]

    wanted = three()
    with fastssl.patch(library, cls) as patch:
        assert patch.names == (f"{cls.__name__}.forward",)
        found = three()
    assert max(relative_error(a, b) for a, b in zip(found, wanted, strict=True)) < 1e-11


def test_barlows_module_has_the_state_of_its_normalisation():
    bn = nn.BatchNorm1d(6, affine=False, momentum=None)
    module = barlow.BarlowTwinsLoss(6, batch_size=9)
    module.bn.momentum = None
    sides = torch.randn(2, 9, 6, generator=torch.Generator().manual_seed(3)).unbind()
    for z in sides:
        bn(z)
    module(*sides)
    for name, wanted in bn.state_dict().items():
        torch.testing.assert_close(module.bn.state_dict()[name], wanted)


def test_solo_learns_scales():
    """Barlow Twins' loss counts 0.025 times; VICReg's variance twice as much as in its repository and in lightly."""
    z = torch.randn(2, 9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).unbind()
    small = [0.3 * t for t in z]  # standard deviations below 1
    torch.testing.assert_close(solo.barlow_loss_func(*z, lamb=0.1), 0.025 * plain.barlow_twins(*z, lambda_param=0.1))
    only = {"sim_loss_weight": 0.0, "cov_loss_weight": 0.0}
    variance = solo.vicreg_loss_func(*small, var_loss_weight=1.0, **only)
    torch.testing.assert_close(variance, sum(F.relu(1 - (t.var(0) + 1e-4).sqrt()).mean() for t in small))
    torch.testing.assert_close(variance, 2 * vicreg_of(*small, lambda_param=0.0, mu_param=1.0, nu_param=0.0))
    torch.testing.assert_close(solo.vicreg_loss_func(*small, 10.0, 3.0, 2.0), plain.vicreg(*small, 10.0, 6.0, 2.0))


def test_refusals():
    z = torch.randn(4, 3)
    for words, call in {
        "barlow_loss_func: z1 and z2 must have at least 2 rows": lambda: solo.barlow_loss_func(z[:1], z[:1]),
        "vicreg_loss_func: z1 and z2 must have the same shape": lambda: solo.vicreg_loss_func(z, z[:2]),
        "vicreg_loss: batch_size must be in": lambda: vicreg.vicreg_loss(z, z, batch_size=1),
        "BarlowTwinsLoss: features must be in": lambda: barlow.BarlowTwinsLoss(0),
        "BarlowTwinsLoss: z1 and z2 must have at least 2 rows": lambda: barlow.BarlowTwinsLoss(3)(z[:1], z[:1]),
    }.items():
        with pytest.raises(ValueError, match=words):
            call()
