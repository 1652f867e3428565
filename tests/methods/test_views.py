"""Barlow Twins, VICReg, LeJEPA, DeepCluster, I-JEPA: their equations in float64, clusters, steps, copies, refusals."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from fastssl.functional import multi_block_mask, sigreg
from fastssl.methods import IJEPA, BarlowTwins, DeepCluster, LeJEPA, VICReg, VisionTransformer
from fastssl.methods._clusters import agreement, fill_empty, whitened
from tests.support.formulas import assert_one_backward_serves_all, gradients_agree, tiny
from tests.support.rotation import of_today
from tests.support.training import needs_train

pytestmark = pytest.mark.usefixtures("one_thread")


def views(count: int = 2, batch: int = 6, size: int = 4) -> tuple[torch.Tensor, ...]:
    return torch.rand(count, batch, 3, size, size, dtype=torch.float64).unbind()


def transformer(**how) -> VisionTransformer:
    return VisionTransformer(12, 2, 8, 1, 2, **how)


def jepa(**how) -> IJEPA:
    """Its teacher is moved away from the encoder."""
    method = IJEPA(transformer(), predictor_dim=8, predictor_depth=1, predictor_heads=2, **how).double()
    with torch.no_grad():
        for p in method.teacher.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return method


# --- equations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [3, 20])
def test_barlow_twins_is_its_equation(width):
    method = BarlowTwins(tiny(), projection_dim=width, lambda_param=0.03).double()
    a, b = views()
    rows = [method.encoder(x) for x in (a, b)]
    unit = [(z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt() for z in rows]
    c = unit[0].T @ unit[1] / 6
    expected = sum((c[i, j] - 1) ** 2 if i == j else 0.03 * c[i, j] ** 2 for i in range(width) for j in range(width))
    gradients_agree(method, method(a, b), expected)
    assert method.encoder.head[-1].bias is None and method.embed(a).shape == (6, 10)


@pytest.mark.parametrize("width", [3, 20])
def test_vicreg_is_its_equation(width):
    method = VICReg(tiny(), projection_dim=width, lambda_param=3.0, mu_param=5.0, nu_param=0.7).double()
    a, b = views()
    rows = [method.encoder(x) for x in (a, b)]
    expected = 3.0 * (rows[0] - rows[1]).square().mean()
    for z in rows:
        c = torch.cov(z.T)
        expected = expected + 5.0 * (1 - (z.var(0) + 1e-4).sqrt()).relu().mean() / 2
        expected = expected + 0.7 * c[~torch.eye(width, dtype=torch.bool)].square().sum() / width
    gradients_agree(method, method(a, b), expected)


@pytest.mark.parametrize("global_views", [1, 2, 3])
def test_lejepa_is_its_equation(global_views):
    """Three views, of which the last one is smaller where it is local. Each view has the SIGReg of its own rows."""
    backbone = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 10))
    method = LeJEPA(backbone, 10, projection_dim=5, slices=16, lambda_param=0.2, global_views=global_views).double().eval()
    given = (*views(), views(1, size=4 if global_views == 3 else 2)[0])
    method.step.fill_(7)
    z = torch.stack([method.encoder(x) for x in given])
    spread = sum(sigreg(rows, slices=16, seed=7) for rows in z) / 3
    expected = 0.8 * (z - z[:global_views].mean(0)).square().mean() + 0.2 * spread
    gradients_agree(method, method(*given), expected)


def test_deepcluster_is_the_cross_entropy_of_those_in_a_cluster():
    method = DeepCluster(tiny(), 9, num_clusters=3).double()
    method.take_round(torch.tensor([0, 2, 1, -1, 2, 0, 1, 1, -1]), 5)
    index = torch.tensor([4, 3, 0, 8, 2, 2])
    images = views(1)[0]
    logits = method.classifier(method.backbone(images))
    expected = -torch.stack([logits[i].log_softmax(0)[label] for i, label in ((0, 2), (2, 0), (4, 1), (5, 1))]).mean()
    gradients_agree(method, method(images, index), expected)


@pytest.mark.parametrize("class_token", [False, True])
def test_ijepa_is_its_equation(class_token):
    method = jepa() if not class_token else IJEPA(transformer(class_token=True), predictor_dim=8, predictor_heads=2).double()
    method.eval()
    images, backbone, teacher = views(1, 3, 12)[0], method.backbone, method.teacher.module
    blocks = multi_block_mask(3, (6, 6), seed=3, num_targets=2, min_keep=5)
    before, losses = int(class_token), []
    for n in range(3):
        own = backbone.patch_embed(images[n : n + 1])[0] + backbone.pos_embed[0, before:]
        x = own[blocks.context_ids[n]]
        x = torch.cat([backbone.cls_token[0] + backbone.pos_embed[0, :1], x]) if class_token else x
        for block in backbone.blocks:
            x = block(x[None])[0]
        z = backbone.norm(x)[before:]
        with torch.no_grad():
            latents = F.layer_norm(teacher.forward_features(images[n : n + 1])[0, before:], (8,))
        for ids in blocks.target_ids[n]:
            positions = method.predictor_pos_embed
            seen = method.predictor_embed(z) + positions[blocks.context_ids[n]]
            y = torch.cat([seen, method.mask_token[0] + positions[ids]])[None]
            for block in method.predictor_blocks:
                y = block(y)
            pred = method.predictor_pred(method.predictor_norm(y[0, -len(ids) :]))
            losses.append(F.smooth_l1_loss(pred, latents[ids]))
    gradients_agree(method, method(images, blocks=blocks), torch.stack(losses).mean())
    torch.testing.assert_close(method.embed(images), teacher(images))


# --- state -----------------------------------------------------------------------------------------------------------

MADE = {
    "lejepa": lambda: LeJEPA(tiny(), projection_dim=5, slices=16).double(),
    "ijepa": lambda: jepa(momentum=0.7, total_steps=5),
}


def steps(method: nn.Module, call, seed: int) -> list[torch.Tensor]:
    torch.manual_seed(seed)
    losses = []
    for _ in range(3):
        given = views(1, 4, 12) if isinstance(method, IJEPA) else views(3, 4)
        given = tuple(view.requires_grad_() for view in given)
        loss = call(method, *given)
        losses.append(loss.detach())
        loss.backward()
        with torch.no_grad():
            for p in method.parameters():
                if p.grad is not None:
                    p.sub_(p.grad, alpha=0.1)
                    p.grad = None
    return losses


@pytest.mark.parametrize("name", MADE)
def test_a_copy_goes_on_as_the_original_and_evaluation_changes_nothing(name):
    method = MADE[name]()
    steps(method, lambda m, *given: m(*given), 1)
    other = MADE[name]()
    other.load_state_dict(method.state_dict())
    assert int(method.step) == 3
    first, second = (steps(m, lambda m, *given: m(*given), 2) for m in (method, other))
    assert torch.equal(torch.stack(first), torch.stack(second)) and int(other.step) == 6
    before = copy.deepcopy(method.eval().state_dict())
    method(*(views(1, 4, 12) if name == "ijepa" else views(3, 4)))
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())


@pytest.mark.parametrize("name", MADE)
def test_a_checkpointed_method_is_the_method(name):
    torch.manual_seed(0)
    method = MADE[name]()
    other = copy.deepcopy(method)
    plain = steps(method, lambda m, *given: m(*given), 1)
    again = steps(other, lambda m, *given: checkpoint(m, *given, use_reentrant=False), 1)
    torch.testing.assert_close(again, plain, rtol=1e-9, atol=1e-12)
    ours, theirs = ({k: v for k, v in m.state_dict().items() if "running" not in k and "num_b" not in k} for m in (other, method))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", MADE)
def test_two_forwards_before_one_backward_have_the_gradients_of_two_backwards(name):
    first, given = MADE[name](), [views(1, 4, 12) if name == "ijepa" else views(3, 4) for _ in range(2)]
    assert_one_backward_serves_all(first, given)


@pytest.mark.parametrize("name", of_today(MADE, 2))
def test_a_whole_graph_is_the_method(name):
    torch._dynamo.reset()
    method = MADE[name]()
    other = copy.deepcopy(method)
    blocks = {"blocks": multi_block_mask(4, (6, 6), seed=3)} if name == "ijepa" else {}
    graph = torch.compile(lambda m, *given: m(*given, **blocks), backend="aot_eager", fullgraph=True)
    compiled, plain = steps(method, graph, 1), steps(other, lambda m, *given: m(*given, **blocks), 1)
    torch.testing.assert_close(compiled, plain, rtol=1e-9, atol=1e-12)
    assert method.step == other.step == 3


def test_the_directions_of_lejepa_follow_its_step():
    method = LeJEPA(tiny(), projection_dim=5, slices=8, lambda_param=1.0).eval()
    given, losses = tuple(view.float() for view in views()), []
    for step in (0, 1, 0):
        method.step.fill_(step)
        losses.append(method(*given).item())
    assert losses[0] == losses[2] != losses[1]


# --- clusters --------------------------------------------------------------------------------------------------------


def blobs(count: int = 60, clusters: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Features in clusters that lie far apart, and which one each is in."""
    generator = torch.Generator().manual_seed(0)
    which = torch.arange(count) % clusters
    return 10.0 * torch.eye(6)[which] + 0.1 * torch.randn(count, 6, generator=generator), which


@needs_train
def test_a_round_finds_clusters_resets_the_classifier_and_is_the_same_again():
    features, which = blobs()
    method, other = (DeepCluster(tiny(width=6), 62, num_clusters=4) for _ in range(2))
    index = torch.arange(60).flip(0)
    for each in (method, other):
        each.start_round(features.flip(0), index, seed=3)
    assert agreement(method.labels[:60], which) == pytest.approx(1.0) and method.labels[60:].tolist() == [-1, -1]
    assert method.round == 1 and method.nmi == 0
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in method.state_dict().items() if "backbone" not in key)
    first = method.classifier.weight.clone()
    assert 0.001 < first.std() < 0.1 and not method.classifier.bias.any()
    with torch.no_grad():
        method.classifier.weight.add_(1.0)
    method.start_round(features, torch.arange(60), seed=4)
    assert method.round == 2 and method.nmi == pytest.approx(1.0) and not torch.equal(method.classifier.weight, first)
    assert method.classifier.weight.mean().abs() < 0.1


def test_samples_are_drawn_evenly_from_the_clusters():
    method = DeepCluster(tiny(), 40, num_clusters=4)
    labels = torch.tensor([0] * 30 + [1] * 5 + [2] * 3 + [3] * 1 + [-1])
    method.take_round(labels, 0)
    order = method.sample_order(torch.Generator().manual_seed(1))
    assert order.shape == (40,) and labels[order].bincount(minlength=4).tolist() == [10, 10, 10, 10]
    assert len(order[labels[order] == 0].unique()) == 10 and order[labels[order] == 1].bincount()[30:35].tolist() == [2] * 5
    assert torch.equal(order, method.sample_order(torch.Generator().manual_seed(1)))
    assert not torch.equal(order, method.sample_order(torch.Generator().manual_seed(2)))


def test_samples_and_clusters_that_a_round_leaves_out():
    method = DeepCluster(tiny(), 8, num_clusters=3)
    method.take_round(torch.tensor([0, 0, 0, 2, 2, -1, -1, -1]), 0)  # no sample in cluster 1
    assert method.labels[method.sample_order(torch.Generator().manual_seed(1))].bincount().tolist() == [4, 0, 4]
    images = views(1, 3)[0].float()
    of_one = method(images, torch.tensor([3, 5, 6]))
    torch.testing.assert_close(of_one, method(images[:2], torch.tensor([3, 7])))
    assert method(images, torch.tensor([5, 6, 7])).item() == 0.0  # a mean of nothing is NaN


@pytest.mark.parametrize(
    "index, error, said",
    [
        ([0, 1, 2], TypeError, "index must be an int64 tensor"),
        (torch.tensor([0.0, 1.0, 2.0]), TypeError, "index must be int64, got torch.float32"),
        (torch.tensor([0, 1, 4]), ValueError, r"index must be in \[0, 4\), got 4"),
        (torch.tensor([0, -1, 2]), ValueError, r"index must be in \[0, 4\), got -1"),
        (torch.tensor([0, 2, 2]), ValueError, "index must hold each sample once, got 2 more often"),
    ],
)
def test_an_index_of_a_round_that_does_not_fit(index, error, said):
    method = DeepCluster(tiny(), 4, num_clusters=2)
    with pytest.raises(error, match=f"^DeepCluster.start_round: {said}"):
        method.start_round(torch.rand(3, 3), index)
    assert method.round == 0 and method.labels.tolist() == [-1] * 4


def test_no_cluster_stays_empty():
    rows = torch.zeros(10, 3)  # k-means finds one cluster in equal rows
    labels = fill_empty(torch.tensor([1] * 9 + [3]), rows, 5, 0)
    assert (labels.bincount(minlength=5) > 0).all() and labels[9] == 3
    kept = torch.tensor([0, 1, 2, 0])
    assert torch.equal(fill_empty(kept, rows[:4], 3, 0), kept)


def test_whitened_rows_have_equal_variances_before_they_are_scaled():
    features = torch.randn(500, 6, dtype=torch.float64) * torch.tensor([5.0, 3, 1, 0.1, 0, 0], dtype=torch.float64) + 7.0
    assert whitened(features, 2).shape == (500, 2) and whitened(features, 10).shape == (500, 4)
    rows = whitened(features, 10).double()
    torch.testing.assert_close(rows.square().sum(1), torch.ones(500, dtype=torch.float64))
    variances = torch.linalg.eigvalsh(torch.cov(rows.T))
    assert variances[-1] < 2 * variances[0]


@needs_train
def test_agreement_is_that_of_scikit_learn():
    from sklearn.metrics import normalized_mutual_info_score

    first, second = torch.randint(5, (200,)), torch.randint(7, (200,))
    second[:150] = first[:150]
    assert agreement(first, second) == pytest.approx(normalized_mutual_info_score(first, second))
    assert agreement(first, (first + 2) % 5) == pytest.approx(1.0) and agreement(first * 0, first * 0) == 1.0


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call, error, said",
    [
        (lambda: BarlowTwins(tiny(), lambda_param=0.0), ValueError, "BarlowTwins: lambda_param must be above 0"),
        (lambda: BarlowTwins(tiny(), statistics="all"), ValueError, "BarlowTwins: statistics must be"),
        (lambda: VICReg(tiny(), projection_dim=0), ValueError, "VICReg: projection_dim must be"),
        (lambda: VICReg(tiny())(*[view[:1] for view in views()]), ValueError, "VICReg: view0 must have shape .* at least 2"),
        (lambda: LeJEPA(tiny(), lambda_param=1.5), ValueError, r"LeJEPA: lambda_param must be in \[0, 1\]"),
        (lambda: LeJEPA(tiny())(views()[0]), ValueError, "LeJEPA: at least 2 views are needed, got 1"),
        (lambda: LeJEPA(tiny())(list(views())), ValueError, r"got 1 list; each view is an argument of its own: method\(\*views\)"),
        (lambda: LeJEPA(tiny())(views()[0], views(1, 5)[0]), ValueError, "LeJEPA: view1 must have as many rows as view0, 6, got 5"),
        (lambda: LeJEPA(tiny())(views()[0], views()[0].float()), TypeError, "LeJEPA: view1 must have dtype and device of view0"),
        (lambda: DeepCluster(tiny(), 9, num_clusters=10), ValueError, "DeepCluster: num_clusters must be at most num_samples 9"),
        (lambda: DeepCluster(tiny(), 9, num_clusters=2)(views()[0], torch.arange(5)), ValueError, "DeepCluster: index must have"),
        (lambda: DeepCluster(tiny(), 9, num_clusters=2)(views()[0], torch.ones(6)), TypeError, "DeepCluster: index must"),
        (lambda: DeepCluster(tiny(), 9, num_clusters=2)(views()[0], torch.arange(6)), ValueError, "no round has been started"),
        (lambda: DeepCluster(tiny(), 9, num_clusters=2).sample_order(), ValueError, "sample_order: no sample is in a cluster"),
        (lambda: DeepCluster(tiny(), 9, num_clusters=5).start_round(torch.rand(4, 3)), ValueError, "features must have shape"),
        (lambda: DeepCluster(tiny(), 4, num_clusters=2).start_round(torch.full((4, 3), torch.nan)), ValueError, "must be finite"),
        (lambda: jepa(blocks={"min_keep": 30}), ValueError, "IJEPA: min_keep"),
        (lambda: jepa(blocks={"scale": 1}), TypeError, "IJEPA: blocks must be a mapping with some of the keys"),
        (lambda: jepa(momentum=2.0), ValueError, "IJEPA: momentum"),
        (
            lambda: IJEPA(transformer(), predictor_dim=6, predictor_heads=2),
            ValueError,
            "predictor_dim must be a multiple of 4",
        ),
        (lambda: IJEPA(tiny()), ValueError, "IJEPA: backbone must be a vision transformer"),
    ],
)
def test_refusals(call, error, said):
    with pytest.raises(error, match=said):
        call()
