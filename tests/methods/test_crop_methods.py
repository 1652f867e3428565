"""DINO, iBOT and SwAV: their equations in float64, schedules, centres, queues, copies, checkpointing, refusals."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from fastssl.methods import DINO, IBOT, SwAV, VisionTransformer
from tests.support.formulas import assert_one_backward_serves_all, gradients_agree, tiny
from tests.support.rotation import of_today

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = {"out_dim": 12, "bottleneck_dim": 5}


class Maps(nn.Sequential):
    """images (B, 3, H, W) -> maps (B, 10, H / 2, W / 2), and their mean (B, 10)."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 10, 2, 2), nn.Tanh())

    def forward_features(self, images):
        return super().forward(images)

    def forward(self, images):
        return self.forward_features(images).mean((2, 3))


def transformer(class_token: bool = True) -> VisionTransformer:
    return VisionTransformer(8, 2, 8, 1, 2, class_token=class_token, dynamic_img_size=True)


def crops(batch: int = 6, large: int = 2, small: int = 3, dtype=torch.float32):
    """Lists of global crops 8 x 8 and of local crops 4 x 4."""
    return [torch.rand(batch, 3, 8, 8, dtype=dtype) for _ in range(large)], [
        torch.rand(batch, 3, 4, 4, dtype=dtype) for _ in range(small)
    ]


MADE = {
    "dino": lambda **how: DINO(Maps(), **SMALL, **how),
    "dino sinkhorn": lambda **how: DINO(Maps(), centering="sinkhorn", **SMALL, **how),
    "ibot": lambda **how: IBOT(transformer(), image_size=8, separate_heads=True, centering="center", **SMALL, **how),
    "ibot maps": lambda **how: IBOT(Maps(), image_size=8, **SMALL, **how),
    "swav": lambda **how: SwAV(Maps(), prototypes=7, projection_dim=5, queue_size=9, **how),
}


def made(name: str, **how) -> nn.Module:
    """The method, its teacher moved away from the encoder, its centres away from 0."""
    method = MADE[name](**how)
    with torch.no_grad():
        for p in method.teacher.parameters() if hasattr(method, "teacher") else ():
            p.add_(0.1 * torch.randn_like(p))
        for key, buffer in method.named_buffers():
            if "center" in key or key == "queue":
                buffer.normal_(std=0.1)
    return method


# --- equations -------------------------------------------------------------------------------------------------------


def balanced(scores, temperature, passes=3):
    """Sinkhorn's potentials (K,) of scores (N, K), by the plan in float64."""
    plan = ((scores - scores.max()) / temperature).exp()
    rows, columns = torch.ones(len(plan), 1).double(), torch.ones(plan.shape[1]).double()
    for step in range(passes):
        columns = 1.0 / (plan * rows).sum(0)
        if step < passes - 1:
            rows = 1.0 / (plan * columns).sum(1, keepdim=True)
    return columns.log()


def entropy_of(targets, scores):
    return -(targets * scores.log_softmax(-1)).sum(-1)


def over_pairs(student, teacher):
    """The mean over pairs of different crops; student (S, B, K) scaled, teacher (T, B, K) probabilities."""
    pairs = [entropy_of(q, s).mean() for t, q in enumerate(teacher) for i, s in enumerate(student) if i != t]
    return torch.stack(pairs).mean()


def scores_of(head, features):
    return F.normalize(head.mlp(features), dim=1) @ F.normalize(head.prototypes.weight, dim=1).T


def teachers(method, scores, temperature, center):
    if method.centering == "center":
        return ((scores - center) / temperature).softmax(-1)
    return (scores / temperature + balanced(scores, temperature)).softmax(-1)


@pytest.mark.parametrize("name", ["dino", "dino sinkhorn"])
def test_dino_is_its_equation(name):
    method = made(name, student_temperature=0.2, teacher_temperature=0.05).double().eval()
    large, small = crops(dtype=torch.float64)
    student = torch.stack([scores_of(method.encoder.head, method.encoder.features(x)) for x in (*large, *small)])
    scores = torch.cat([method.teacher(x) for x in large])
    expected = over_pairs(student / 0.2, teachers(method, scores, 0.05, method.center).view(2, 6, -1))
    gradients_agree(method, method(large, small), expected)
    assert method(large).isfinite()


@pytest.mark.parametrize("name", ["ibot", "ibot maps", "mean"])
def test_ibot_is_its_equation(name):
    """With patches of a transformer with and without a class token, and with the maps of a convolution."""
    if name == "mean":
        method = IBOT(transformer(False), patch_weight=0.7, koleo_weight=0.3, **SMALL)
    else:
        method = made(name, patch_weight=0.7, koleo_weight=0.3)
    method = method.double().eval()
    large, small = crops(dtype=torch.float64)
    both = torch.cat(large)
    rows, ids = method.draw_blocks(12, torch.Generator().manual_seed(1))
    assert len(rows) == 6 and len(rows.unique()) == 6 and ids.shape[0] == 6
    mask = torch.zeros(12, 16, dtype=torch.bool)
    for row, places in zip(rows.tolist(), ids.tolist(), strict=True):
        mask[row, places] = True

    def tokens(backbone, images, hidden):
        """features and patches, the mask token in those that are hidden."""
        if isinstance(backbone, Maps):
            pixels = hidden.view(-1, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
            maps = backbone.forward_features(torch.where(pixels, method.mask_token.view(1, 3, 1, 1), images))
            return maps.mean((2, 3)), maps.flatten(2).transpose(1, 2)
        x = torch.where(hidden[..., None], method.mask_token, backbone.patch_embed(images))
        before = 0 if backbone.cls_token is None else 1
        x = torch.cat([backbone.cls_token.expand(12, -1, -1), x], 1) if before else x
        x = backbone.norm(backbone.blocks[0](x + backbone.pos_embed))
        return (x[:, 0] if before else x.mean(1)), x[:, before:]

    encoder, teacher = method.encoder, method.teacher.module
    features, patches = tokens(encoder.backbone, both, mask)
    student = torch.cat([features, *map(encoder.features, small)])
    whole, whole_patches = tokens(teacher.backbone, both, torch.zeros_like(mask))
    temperature = 0.07
    targets = teachers(method, scores_of(teacher.head, whole), temperature, method.center).view(2, 6, -1)
    expected = over_pairs(scores_of(encoder.head, student).view(5, 6, -1) / 0.1, targets)
    heads = [head if head.own is None else head.own for head in (encoder.head, teacher.head)]
    at = rows[:, None], ids
    ours, theirs = scores_of(heads[0], patches[at].flatten(0, 1)), scores_of(heads[1], whole_patches[at].flatten(0, 1))
    each = entropy_of(teachers(method, theirs, temperature, method.patch_center), ours / 0.1)
    expected = expected + 0.7 * each.view(6, -1).mean(1).sum() / 12
    for part in features.chunk(2):
        unit = F.normalize(part, dim=1)
        near = (unit @ unit.T).detach().fill_diagonal_(-2).argmax(1)
        expected = expected - 0.3 * ((unit - unit[near] + 1e-8).norm(dim=1) + 1e-8).log().mean()
    gradients_agree(method, method(large, small, blocks=(rows, ids)), expected)
    torch.testing.assert_close(method.embed(large[0]), encoder.backbone(large[0]))


@pytest.mark.parametrize("used", [False, True])
def test_swav_is_its_equation(used):
    """With a queue that is not full yet, and with one that is."""
    method = made("swav").double().eval()
    method.queue_seen.fill_(20 if used else 8)
    large, small = crops(dtype=torch.float64)
    z = [F.normalize(method.encoder(x), dim=1) for x in (*large, *small)]
    scores = torch.stack([rows @ method.prototypes.weight.T for rows in z])
    codes = []
    for crop in (0, 1):
        rows = scores[crop].detach()
        older = method.queue.view(9, 2, 5)[:, crop] @ method.prototypes.weight.detach().T
        potential = balanced(torch.cat([older, rows]) if used else rows, 0.05)
        codes.append((rows / 0.05 + potential).softmax(1))
    gradients_agree(method, method(large, small), over_pairs(scores / 0.1, codes))


# --- what moves ------------------------------------------------------------------------------------------------------


def a_step(method: nn.Module, given) -> torch.Tensor:
    parameters = [p for p in method.parameters() if p.requires_grad]
    loss = method(*given)
    with torch.no_grad():
        for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            p.sub_(g, alpha=0.1)
    return loss.detach()


def test_temperature_and_frozen_prototypes_follow_the_steps():
    method = made("dino", total_steps=20, warmup=0.5, frozen=0.1, teacher_temperature=(0.04, 0.07), momentum=0.9)
    weight = method.encoder.head.prototypes.weight
    for step in range(13):
        temperature, learns = method.schedules()
        assert float(temperature) == pytest.approx(0.04 + 0.03 * min(step / 10, 1.0)) and bool(learns) == (step >= 2)
        loss, before = method(*crops()), weight.grad
        loss.backward()
        assert before is None and (weight.grad.abs().sum() > 0) == (step >= 2)
        weight.grad = None
    assert made("dino").schedules() == (0.07, None)


def test_the_centre_is_a_moving_mean_and_the_loss_sees_the_one_before():
    method = made("dino", momentum=1.0, center_momentum=0.8)
    given = crops()
    before = method.center.clone()
    loss = method(*given)
    rows = torch.cat([method.teacher(x) for x in given[0]])
    torch.testing.assert_close(method.center, 0.8 * before + 0.2 * rows.mean(0))
    method.center.copy_(before)
    torch.testing.assert_close(loss, method.eval()(*given))
    assert torch.equal(method.center, before)


def test_the_queue_takes_the_embeddings_of_both_large_crops_and_is_used_when_it_is_full_and_due():
    method = made("swav", total_steps=10, queue_start=0.3, frozen=0.0)
    large, small = crops(4)
    for step in range(1, 5):
        method.train()
        features = torch.cat([method.encoder.features(x) for x in (*large, *small)])
        z = torch.cat(F.normalize(method.encoder.head(features)[:8], dim=1).chunk(2), 1).detach()
        method(large, small)
        torch.testing.assert_close(method.prototypes.weight.norm(dim=1), torch.ones(7))
        at = torch.arange(4 * (step - 1), 4 * step) % 9
        torch.testing.assert_close(method.queue[at], z, rtol=1e-4, atol=1e-5)
        assert int(method.queue_pointer) == 4 * step % 9 and int(method.queue_seen) == 4 * step
        method.eval()
        with_queue = method(large, small)
        queue, method.queue = method.queue, None
        assert torch.allclose(with_queue, method(large, small), atol=1e-6) == (step < 3)
        method.queue = queue


@pytest.mark.parametrize("name", MADE)
def test_a_copy_goes_on_as_the_original_would_and_evaluation_changes_nothing(name):
    options = {"total_steps": 8, "frozen": 0.3} | ({} if name == "swav" else {"momentum": 0.9})
    method = made(name, **options)
    a_step(method, crops())
    loaded = MADE[name](**options)
    loaded.load_state_dict(method.state_dict())
    others = [loaded, copy.deepcopy(method), pickle.loads(pickle.dumps(method))]
    for _ in range(3):
        given, losses = crops(), []
        for each in (method, *others):
            torch.manual_seed(7)
            losses.append(a_step(each, given))
        assert all(torch.equal(loss, losses[0]) for loss in losses)
    state = copy.deepcopy(method.state_dict())
    for other in others:
        assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())
    method.eval()(*crops())
    assert all(torch.equal(value, state[key]) for key, value in method.state_dict().items())


@pytest.mark.parametrize("name", MADE)
def test_a_checkpointed_method_is_the_method(name):
    """The second run has the masks, centres, queue and frozen prototypes of the first."""
    given, seen = crops(dtype=torch.float64), []
    torch.manual_seed(3)
    first = made(name, total_steps=10, frozen=0.1).double()
    for again in (False, True):
        method = copy.deepcopy(first)
        torch.manual_seed(4)
        for _ in range(2):
            loss = checkpoint(method, *given, use_reentrant=False) if again else method(*given)
            loss.backward()
        seen.append([loss, *(p.grad for p in method.parameters() if p.requires_grad), *method.state_dict().values()])
    keys = [key for key in method.state_dict() if "running" in key or "num_batches" in key]
    assert not keys or name == "swav"
    for plain, other in zip(*seen, strict=True):
        statistics = name == "swav" and plain.shape == torch.Size([10])  # they move twice, as always
        if plain.is_floating_point() and not statistics:
            torch.testing.assert_close(other, plain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", MADE)
def test_two_forwards_before_one_backward_have_the_gradients_of_two_backwards(name):
    """The first forward's graph outlives what the second one moves: the teacher, centres, the queue, the lengths of prototypes."""
    first, given = made(name, total_steps=10, frozen=0.0).double(), [crops(dtype=torch.float64) for _ in range(2)]
    assert_one_backward_serves_all(first, given)


@pytest.mark.parametrize("name", ["dino", "ibot", "swav"])
def test_under_autocast_the_loss_is_wide_and_every_parameter_learns(name):
    method, given = made(name, total_steps=10), crops()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = method(*given)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", of_today(["dino", "ibot", "swav"], 3))
def test_a_whole_graph_moves_what_the_method_moves(name):
    method, given = made(name, total_steps=10, frozen=0.2), crops()
    more = {"blocks": method.draw_blocks(12)} if name == "ibot" else {}
    compiled = copy.deepcopy(method)
    expected, got = method(*given, **more), torch.compile(compiled, fullgraph=True, backend="eager")(*given, **more)
    torch.testing.assert_close(got, expected)
    for key, value in compiled.state_dict().items():
        torch.testing.assert_close(value, method.state_dict()[key])


# --- refusals --------------------------------------------------------------------------------------------------------

LARGE, LOCAL = crops(4)
BAD_INPUT = [
    (ValueError, lambda: DINO(Maps(), out_dim=0), "DINO: out_dim"),
    (ValueError, lambda: DINO(Maps(), student_temperature=0.0), "DINO: student_temperature must be above 0"),
    (ValueError, lambda: DINO(Maps(), teacher_temperature=(0.04, -1.0)), "DINO: teacher_temperature must be above 0"),
    (ValueError, lambda: DINO(Maps(), teacher_temperature=(0.1, 0.2, 0.3)), "DINO: teacher_temperature must be a number or a pair"),
    (ValueError, lambda: DINO(Maps(), warmup=1.5), r"DINO: warmup must be in \[0, 1\], a share of total_steps"),
    (ValueError, lambda: DINO(Maps(), frozen=-0.1), "DINO: frozen"),
    (ValueError, lambda: DINO(Maps(), centering="mean"), "DINO: centering must be one of"),
    (ValueError, lambda: DINO(Maps(), center_momentum=2.0), "DINO: center_momentum"),
    (TypeError, lambda: MADE["dino"]()(LARGE[0]), "DINO: global_crops must be a list of tensors"),
    (TypeError, lambda: MADE["dino"]()([*LARGE, 3]), "DINO: global_crops"),
    (ValueError, lambda: MADE["dino"]()(LARGE[:1], LOCAL), "DINO: global_crops must hold at least 2 crops, got 1"),
    (ValueError, lambda: MADE["dino"]()([LARGE[0], LOCAL[0]]), "DINO: global_crops must have one shape"),
    (ValueError, lambda: MADE["dino"]()(LARGE, [LOCAL[0][:3]]), "DINO: local_crops must hold crops of the same 4 samples"),
    (TypeError, lambda: MADE["dino"]()(LARGE, [LOCAL[0].double()]), "DINO: local_crops must have the same dtype"),
    (ValueError, lambda: MADE["dino"]()([x[:1] for x in LARGE]), "DINO: global_crops .* B of at least 2"),
    (ValueError, lambda: IBOT(tiny(), 10), "IBOT: backbone must be a vision transformer, or have forward_features"),
    (ValueError, lambda: IBOT(Maps(), image_size=2), "IBOT: image_size must give at least 2 x 2 patches"),
    (ValueError, lambda: IBOT(Maps(), mask_share=2.0), "IBOT: mask_share"),
    (ValueError, lambda: IBOT(Maps(), mask_scale=(0.5, 0.1)), "IBOT: mask_scale"),
    (ValueError, lambda: IBOT(Maps(), koleo_weight=-1.0), "IBOT: koleo_weight"),
    (ValueError, lambda: MADE["ibot"]()([x[..., :6] for x in LARGE]), r"IBOT: global_crops must have .* \(B, 3, 8, 8\)"),
    (TypeError, lambda: MADE["ibot"]()(LARGE, blocks=3), "IBOT: blocks must be"),
    (ValueError, lambda: MADE["ibot"]()(LARGE, blocks=(torch.zeros(2).long(), torch.zeros(3, 4).long())), "IBOT: blocks must be"),
    (ValueError, lambda: SwAV(Maps(), prototypes=0), "SwAV: prototypes"),
    (ValueError, lambda: SwAV(Maps(), epsilon=0.0), "SwAV: epsilon must be above 0"),
    (ValueError, lambda: SwAV(Maps(), queue_size=-1), "SwAV: queue_size"),
    (ValueError, lambda: MADE["swav"]()([*LARGE, LARGE[0]], LOCAL), "SwAV: global_crops must be 2 where there is a queue, got 3"),
]


@pytest.mark.parametrize("error, call, words", BAD_INPUT)
def test_bad_input_is_refused_with_a_message(error, call, words):
    with pytest.raises(error, match=words):
        call()


def test_a_queue_of_fewer_rows_than_processes(monkeypatch):
    backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 8))
    method = SwAV(backbone, prototypes=6, projection_dim=4, queue_size=1)
    monkeypatch.setattr("fastssl.methods._crop_queue.world_size", lambda: 2)
    monkeypatch.setattr("fastssl.methods._crop_queue.rank", lambda: 1)  # whose part of the queue is empty
    assert method([torch.rand(3, 3, 2, 2), torch.rand(3, 3, 2, 2)]).isfinite()
