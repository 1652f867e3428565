"""Weights and shares of the losses without negatives: what gives no objective is refused, in functions, modules and drop-ins."""

import math

import pytest
import torch

from fastssl import functional as F_
from fastssl import loss
from fastssl.compat import barlow, dino, dinov2, solo
from fastssl.compat import vicreg as of_repository

Z0, Z1 = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
VIEWS = torch.stack([Z0, Z1])
WEIGHTS = {
    "barlow_twins: lambda_param": lambda v: F_.barlow_twins(Z0, Z1, v),
    "vicreg: lambda_param": lambda v: F_.vicreg(Z0, Z1, lambda_param=v),
    "vicreg: mu_param": lambda v: F_.vicreg(Z0, Z1, mu_param=v),
    "vicreg: nu_param": lambda v: F_.vicreg(Z0, Z1, nu_param=v),
    "visreg: weights": lambda v: F_.visreg(VIEWS, weights=(1.0, v, 1.0), slices=8),
    "mmcr: lambda_param": lambda v: F_.mmcr(VIEWS, VIEWS, v),
    "tico: rho": lambda v: F_.tico(Z0, Z1, rho=v)[0],
    "barlow_loss_func: lamb": lambda v: solo.barlow_loss_func(Z0, Z1, v),
    "barlow_loss_func: scale_loss": lambda v: solo.barlow_loss_func(Z0, Z1, scale_loss=v),
    "vicreg_loss_func: sim_loss_weight": lambda v: solo.vicreg_loss_func(Z0, Z1, v),
    "vicreg_loss: cov_coeff": lambda v: of_repository.vicreg_loss(Z0, Z1, cov_coeff=v, batch_size=6),
    "BarlowTwinsLoss: lambd": lambda v: barlow.BarlowTwinsLoss(5, v, batch_size=6)(Z0, Z1),
}
MODULES = {
    "BarlowTwinsLoss: lambda_param": lambda v: loss.BarlowTwinsLoss(v),
    "VICRegLoss: lambda_param": lambda v: loss.VICRegLoss(lambda_param=v),
    "VICRegLoss: mu_param": lambda v: loss.VICRegLoss(mu_param=v),
    "VICRegLoss: nu_param": lambda v: loss.VICRegLoss(nu_param=v),
    "VISRegLoss: lambda_scale": lambda v: loss.VISRegLoss(lambda_scale=v),
    "VISRegLoss: lambda_shape": lambda v: loss.VISRegLoss(lambda_shape=v),
    "VISRegLoss: lambda_center": lambda v: loss.VISRegLoss(lambda_center=v),
    "MMCRLoss: lmda": lambda v: loss.MMCRLoss(v),
    "TiCoLoss: rho": lambda v: loss.TiCoLoss(rho=v),
}
SHARES = {
    "lejepa_loss: lambda_param": lambda v: F_.lejepa_loss(VIEWS, lambda_param=v, slices=8),
    "visreg: lambda_param": lambda v: F_.visreg(VIEWS, lambda_param=v, slices=8),
    "tico: beta": lambda v: F_.tico(Z0, Z1, beta=v)[0],
    "update_center: momentum": lambda v: F_.update_center(torch.zeros(5), Z0, v),
    "LeJEPALoss: lambda_param": lambda v: loss.LeJEPALoss(v),
    "VISRegLoss: lambda_param": lambda v: loss.VISRegLoss(v),
    "TiCoLoss: beta": lambda v: loss.TiCoLoss(v),
    "DINOLoss: center_momentum": lambda v: loss.DINOLoss(5, center_momentum=v),
    "Center: momentum": lambda v: loss.IBOTPatchLoss(5, center_momentum=v),
    "DINOLoss: center_momentum of DINO": lambda v: dino.DINOLoss(5, 4, 0.04, 0.04, 0, 1, center_momentum=v),
    "DINOLoss: center_momentum of DINOv2": lambda v: dinov2.DINOLoss(5, center_momentum=v),
    "DINOLoss: center_momentum of solo-learn": lambda v: solo.DINOLoss(5, 0.04, 0.04, 0, 1, center_momentum=v),
}


@pytest.mark.parametrize("name", WEIGHTS | MODULES)
def test_a_weight_is_finite_and_at_least_0(name):
    call = (WEIGHTS | MODULES)[name]
    for value in (-1.0, -1e-9, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"{name} must be {'at least 0' if value < 0 else 'finite'}, got {value}"):
            call(value)
    for value in (0, 0.5):
        result = call(value)
        assert not isinstance(result, torch.Tensor) or result.isfinite().all()


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_weight_beyond_float32_is_refused_of_float32_rows(name):
    with pytest.raises(ValueError, match=f"{name} must be finite in torch.float32, got 1e\\+300"):
        WEIGHTS[name](1e300)


@pytest.mark.parametrize("name", SHARES)
def test_a_share_lies_in_0_to_1(name):
    for value in (-0.1, 1.1, math.nan, math.inf, 10**400):
        with pytest.raises(ValueError, match=f"{name.split(' of ')[0]} must be "):
            SHARES[name](value)
    for value in (0, 1):
        SHARES[name](value)


def test_temperatures_and_eps_that_float32_does_not_hold():
    for make in (lambda t: loss.DINOLoss(5, teacher_temp=t), lambda t: loss.IBOTPatchLoss(5, student_temp=t)):
        with pytest.raises(ValueError, match=r"_temp must be in \[0, 3.40282e\+38\), got 1e\+300"):
            make(1e300)
    with pytest.raises(ValueError, match="koleo: eps must be finite in torch"):
        F_.koleo(Z0, eps=1e300)
