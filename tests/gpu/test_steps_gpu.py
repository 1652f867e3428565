"""Whole training steps captured in a CUDA graph: every replay equals the step outside the graph, bit for bit."""

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastssl.graphs import capture_step
from fastssl.methods import MAE, MoCo, VisionTransformer
from fastssl.optim import LARS, AdamW

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
TURNS = 5


@pytest.fixture
def deterministic():
    """Makes torch's own kernels deterministic too: convolutions, matrix products, attention."""
    torch.use_deterministic_algorithms(True)
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True), sdpa_kernel(SDPBackend.MATH):
        yield
    torch.use_deterministic_algorithms(False)


def convolutions():
    layers = [nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    layers += [nn.Conv2d(8, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers)


def moco():
    """The momentum has a schedule, for which a replay reads the count of steps on the device."""
    model = MoCo(convolutions(), mlp=True, projection_dim=32, queue_size=100, momentum=0.9, final_momentum=1.0, total_steps=10)
    images = [torch.randn(16, 3, 32, 32) for _ in range(2)]
    return model, lambda params, lr: LARS(params, lr=lr, weight_decay=1e-4), images


def moco_of_shuffled_parts():
    """``shuffle_bn`` is off, since its order would be drawn anew in each step."""
    model = MoCo(convolutions(), queue_size=100, projection_dim=32, symmetric=True, bn_splits=2, shuffle_bn=False)
    images = [torch.randn(16, 3, 32, 32) for _ in range(2)]
    return model, lambda params, lr: AdamW(params, lr=lr, capturable=True), images


def mae():
    backbone = VisionTransformer(32, 8, 64, 2, 4, class_token=True)
    model = MAE(backbone, decoder_dim=32, decoder_depth=1, decoder_heads=2, norm_pix_loss=True)
    images = torch.rand(16, 3, 32, 32)
    return model, lambda params, lr: AdamW(params, lr=lr, betas=(0.9, 0.95), capturable=True), [images, torch.rand(16, 16)]


class Training:
    """A model with its optimizer on the GPU, and a batch of ``inputs``."""

    def __init__(self, make):
        torch.manual_seed(0)
        model, optimizer, inputs = make()
        self.model, self.inputs = model.cuda().train(), [t.cuda() for t in inputs]
        self.rate = torch.tensor(0.05, device="cuda")
        self.optimizer = optimizer([p for p in self.model.parameters() if p.requires_grad], self.rate)

    def step(self, first, second):
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.model(first, noise=second) if isinstance(self.model, MAE) else self.model(first, second)
        loss.backward()
        self.optimizer.step()
        return loss

    def state(self) -> dict[str, torch.Tensor]:
        """Parameters, teacher, queue, statistics, momenta: all that a step changes."""
        momenta = {
            f"{i}.{name}": value
            for i, state in enumerate(self.optimizer.state.values())
            for name, value in state.items()
            if isinstance(value, torch.Tensor)
        }
        return self.model.state_dict() | momenta


@pytest.mark.parametrize("make", [moco, moco_of_shuffled_parts, mae])
def test_replays_are_the_steps_outside(make, deterministic):
    ours, outside = Training(make), Training(make)
    for _ in range(2):
        outside.step(*outside.inputs)
    graphed = capture_step(ours.step, *ours.inputs, warmup=2)
    losses = set()
    for turn in range(TURNS):
        batch = [torch.rand_like(t) for t in ours.inputs]
        ours.rate.fill_(0.05 / (turn + 1))
        outside.rate.fill_(0.05 / (turn + 1))
        loss = graphed(*batch)
        assert torch.equal(loss, outside.step(*batch)) and not loss.requires_grad, turn
        losses.add(loss.item())
    found, expected = ours.state(), outside.state()
    assert found.keys() == expected.keys() and len(losses) == TURNS
    assert not [name for name in found if not torch.equal(found[name], expected[name])]
    if "queue.queue_ptr" in found:
        pushed = 16 * (2 + TURNS) * (1 + ours.model.symmetric)
        assert found["step"].item() == 2 + TURNS and found["queue.queue_ptr"].item() == pushed % 100
