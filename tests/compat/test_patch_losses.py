"""``fastssl.patch`` on open_clip, info-nce-pytorch and pytorch-metric-learning: the same losses through their own classes."""

import importlib
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch.testing import assert_close

import fastssl
from fastssl.compat import lightly as ours
from tests.compat.test_patch import assert_same_bindings, bindings, original
from tests.support.compat_nets import library

pytestmark = pytest.mark.usefixtures("one_thread")


def in_both(library_name, compute):
    """What ``compute`` gives unpatched and patched."""
    results = []
    for patched in (False, True):
        with fastssl.patch(library_name) if patched else nullcontext():
            results.append(compute())
    return results


def leaves(*shapes, dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def value_and_grads(loss, inputs):
    value = loss(*inputs)
    return value.detach(), torch.autograd.grad(value, inputs)


@pytest.mark.parametrize("name", ["open_clip", "info_nce", "pytorch_metric_learning"])
def test_all_is_put_back(name):
    pytest.importorskip("ftfy")
    module = library({"pytorch_metric_learning": f"{name}.losses", "open_clip": "open_clip.loss"}.get(name, name))
    importlib.import_module(f"fastssl.compat.{name}")
    before = bindings(name)
    with fastssl.patch("pml" if name == "pytorch_metric_learning" else name) as patch:
        for path, names in fastssl.patch.__globals__["NAMES"][name].items():
            for bound in names:
                assert original(getattr(importlib.import_module(path), bound)).__module__.startswith("fastssl.")
        assert patch.names and module
    assert_same_bindings(bindings(name), before)


def test_open_clips_factory_builds_ours():
    pytest.importorskip("ftfy")
    theirs, factory = library("open_clip.loss"), library("open_clip.factory")
    options = {"local_loss": False, "gather_with_grad": False, "rank": 0, "world_size": 1, "horovod": False, "distill": False}

    def compute():
        results = []
        for args in ({"model": "ViT-B-32", "siglip": False}, {"model": "ViT-B-32", "siglip": True}):
            criterion = factory.create_loss(type("Args", (), options | args | {"loss_dist_impl": None}))
            inputs = [*leaves((6, 8), (6, 8)), torch.tensor(3.0, requires_grad=True)]
            bias = torch.tensor(-2.0) if args["siglip"] else None
            results.append((type(criterion), value_and_grads(partial(criterion, logit_bias=bias), inputs)))
        return results

    for (cls, want), (new, got) in zip(*in_both("open_clip", compute), strict=True):
        assert cls.__name__ == new.__name__ and cls is not new and cls.__module__ == theirs.__name__
        assert_close(got, want)


def test_info_nce_by_position_and_by_class():
    theirs = library("info_nce")
    query, key, negatives, paired = leaves((6, 8), (6, 8), (5, 8), (6, 5, 8))
    calls = (
        lambda: theirs.info_nce(query, key, None, 0.1, "sum"),
        lambda: theirs.info_nce(query, key, negatives, 0.1, "none", "unpaired"),
        lambda: theirs.InfoNCE(0.2, "mean", "paired")(query, key, paired),
        lambda: theirs.InfoNCE()(query, key),
    )
    want, got = in_both("info_nce", lambda: [call() for call in calls])
    assert_close(got, want)


# --- pytorch-metric-learning -------------------------------------------------------------------------------------------------


def pml_losses(name, **options):
    return getattr(library("pytorch_metric_learning.losses"), name)(**options)


LABELS = {
    "some alone": lambda: torch.tensor([0, 1, 1, 3, 0, 3, 3, 8, 9]),
    "pairs": lambda: torch.arange(5).repeat(2),
    "all alone": lambda: torch.arange(4),
    "all equal": lambda: torch.zeros(4, dtype=torch.int64),
    "two": lambda: torch.tensor([0, 0]),
    "one": lambda: torch.tensor([5]),
}


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("name", ["SupConLoss", "NTXentLoss"])
def test_pytorch_metric_learning(name, labels):
    """Reducers, references and regularizers are its own; the losses of the same rows and pairs agree to float64's rounding."""
    library("pytorch_metric_learning.losses")
    reducers, regularizers = library("pytorch_metric_learning.reducers"), library("pytorch_metric_learning.regularizers")
    labels = LABELS[labels]()
    x, y = leaves((len(labels), 6), (7, 6), dtype=torch.float64)
    references = labels.repeat(7)[:7].roll(1)

    def compute():
        results = []
        for options in ({}, {"temperature": 0.5, "embedding_regularizer": regularizers.LpRegularizer()}):
            criterion = pml_losses(name, **options)
            for call in (lambda x: criterion(x, labels), lambda x: criterion(x, labels, None, y, references)):  # noqa: B023
                loss = call(x)
                results.append(
                    (loss, torch.autograd.grad(loss, x, allow_unused=True, materialize_grads=True) if loss.requires_grad else 0)
                )
        rows = pml_losses(name, reducer=reducers.DoNothingReducer())(x, labels)["loss"]
        return results, rows["losses"], rows["indices"]

    want, got = in_both("pytorch_metric_learning", compute)
    assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_pytorch_metric_learning_takes_its_own_path_where_ours_does_not_serve(monkeypatch):
    library("pytorch_metric_learning.losses")
    distances, miners = library("pytorch_metric_learning.distances"), library("pytorch_metric_learning.miners")
    (x,), labels = leaves((6, 4), dtype=torch.float64), torch.tensor([0, 0, 1, 1, 2, 2])
    drop_ins = importlib.import_module("fastssl.compat.pml")
    monkeypatch.setattr(drop_ins, "similarity_lse", None)  # would raise

    def compute():
        criterion = pml_losses("NTXentLoss", distance=distances.LpDistance())
        mined = miners.MultiSimilarityMiner()(x, labels)
        plain = pml_losses("SupConLoss")
        return criterion(x, labels), plain(x, labels, mined), plain(x.bfloat16(), labels), plain(x, labels.double())

    assert_close(*in_both("pytorch_metric_learning", compute))


def test_pytorch_metric_learnings_wrappers_accept_ours():
    losses = library("pytorch_metric_learning.losses")
    base = losses.BaseMetricLossFunction
    x, y = leaves((6, 4), (6, 4), dtype=torch.float64)

    def compute():
        results = []
        for name in ("SupConLoss", "NTXentLoss"):
            assert isinstance(pml_losses(name), base)
            for symmetric in (True, False):
                results.append(losses.SelfSupervisedLoss(pml_losses(name), symmetric=symmetric)(x, y))
            memory = losses.CrossBatchMemory(pml_losses(name), embedding_size=4, memory_size=16)
            results += [memory(x, torch.arange(6) // 2), memory(y, torch.arange(6) // 2)]
        return results

    assert_close(*in_both("pytorch_metric_learning", compute))


# --- calls that the library accepts and a drop-in refuses ---------------------------------------------------------------------


def test_calls_that_a_drop_in_refuses_still_run():
    theirs = library("lightly.models.utils")
    whole, tokens = torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4), torch.arange(12).reshape(2, 3, 2)
    calls = {
        "patchify": (whole, 2),
        "repeat_token": (torch.arange(3).reshape(1, 1, 3), (2, 3)),
        "mask_bool": (tokens, torch.eye(2, 3), torch.zeros(1, 1, 2, dtype=torch.int64)),
    }
    for name, arguments in calls.items():
        with pytest.raises((TypeError, ValueError), match=name):
            getattr(ours, name)(*arguments)
        want, got = in_both("lightly", lambda: getattr(theirs, name)(*arguments))  # noqa: B023
        assert torch.equal(got, want), name


def test_vit_mae_gives_its_images_their_gradient():
    """An attack on the images, as it ran before."""
    vit_mae = library("transformers.models.vit_mae.modeling_vit_mae")
    small = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "hidden_size": 8}
    decoder = {"decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    torch.manual_seed(0)
    config = vit_mae.ViTMAEConfig(image_size=16, patch_size=4, norm_pix_loss=True, decoder_intermediate_size=16, **small, **decoder)
    model = vit_mae.ViTMAEForPreTraining(config).eval()
    (pixels,), noise = leaves((2, 3, 16, 16)), torch.rand(2, 16)
    assert_close(*in_both("transformers", lambda: value_and_grads(lambda x: model(x, noise=noise).loss, [pixels])))
