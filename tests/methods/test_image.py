"""SupCon, InstDisc, CMC, NNCLR, CPC: their equations in float64, banks and queues, training for real, the command line."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastssl.methods import CMC, CPC, NNCLR, InstDisc, SimCLR, SupCon
from fastssl.methods._columns import patch_columns
from tests.support.formulas import cross_entropy64, gradients_agree, rows64, tiny
from tests.support.rotation import of_today
from tests.support.training import needs_train, train_briefly, write_grey_classes

ROOT = Path(__file__).resolve().parents[2]
NEW = ("supcon", "instdisc", "cmc", "nnclr", "cpc")


pytestmark = pytest.mark.usefixtures("one_thread")


def test_supcon_is_its_equation():
    method = SupCon(tiny(), 10, projection_dim=6, temperature=0.2).eval()
    a, b, labels = torch.rand(7, 3, 4, 4), torch.rand(7, 3, 4, 4), torch.tensor([5, -2, 5, 9, -2, 5, 1])
    z, key = rows64(method.projection_head(method.embed(torch.cat([a, b])))), labels.repeat(2)
    logits = (z @ z.T / 0.2).masked_fill(torch.eye(14, dtype=torch.bool), -torch.inf)
    positive = (key[:, None] == key) & ~torch.eye(14, dtype=torch.bool)
    log_p = logits - logits.logsumexp(1, keepdim=True)
    expected = -(torch.where(positive, log_p, 0.0).sum(1) / positive.sum(1)).mean()
    gradients_agree(method, method(a, b, labels), expected)
    torch.testing.assert_close(method(a, b, torch.arange(7)), method(a, b), rtol=1e-5, atol=1e-6)


def test_supcon_base_temperature_scales_the_loss():
    a, b, labels = torch.rand(4, 3, 4, 4), torch.rand(4, 3, 4, 4), torch.tensor([0, 0, 1, 1])
    method = SupCon(tiny(), 10, temperature=0.2, base_temperature=0.07).eval()
    plain = method(a, b, labels)
    method.base_temperature = None
    torch.testing.assert_close(plain, method(a, b, labels) * (0.2 / 0.07))


def test_instdisc_is_a_softmax_over_the_whole_bank():
    method = InstDisc(tiny(), 40, 10, projection_dim=6, temperature=0.1, proximal_weight=0.3).eval()
    images, index = torch.rand(5, 3, 4, 4), torch.tensor([3, 39, 0, 7, 20])
    z = rows64(method.projection_head(method.embed(images)))
    expected = F.cross_entropy(z @ method.bank.double().T / 0.1, index)
    expected = expected + 0.3 * (z - method.bank.double()[index]).square().sum(1).mean()
    gradients_agree(method, method(images, index), expected)


def test_instdisc_updates_its_rows_of_the_bank_and_the_gradient_does_not_see_it():
    method = InstDisc(tiny(), 40, 10, projection_dim=6, momentum=0.5)
    images, index = torch.rand(5, 3, 4, 4), torch.tensor([3, 39, 0, 7, 20])
    before = method.bank.clone()
    z = method.rows(images).detach()
    parameters = list(method.parameters())
    untouched = torch.autograd.grad(method.eval()(images, index), parameters)
    assert torch.equal(method.bank, before)
    loss = method.train()(images, index)
    torch.testing.assert_close(method.bank[index], F.normalize(0.5 * before[index] + 0.5 * z, dim=1))
    others = torch.ones(40, dtype=torch.bool).index_fill(0, index, False)
    assert torch.equal(method.bank[others], before[others])
    method.bank.fill_(torch.nan)
    for a, b in zip(torch.autograd.grad(loss, parameters), untouched, strict=True):
        assert torch.equal(a, b)
    method.fill_bank(images, index)
    torch.testing.assert_close(method.bank[index], z)


@pytest.mark.parametrize("graph, pairs", [("full", [(0, 1), (0, 2), (1, 2)]), ("core", [(0, 1), (0, 2)])])
def test_cmc_sums_symmetric_info_nce_over_pairs_of_views(graph, pairs):
    method = CMC([tiny(3), tiny(1), tiny(2)], [10, 10, 10], projection_dim=6, temperature=0.2, graph=graph).eval()
    views = [torch.rand(5, channels, 4, 4) for channels in (3, 1, 2)]
    parts = zip(method.projection_heads, method.backbones, views, strict=True)
    z = [head(encoder(view)) for head, encoder, view in parts]
    expected = sum((cross_entropy64(z[i], z[j], 0.2) + cross_entropy64(z[j], z[i], 0.2)) / 2 for i, j in pairs)
    gradients_agree(method, method(*views), expected)
    assert method.embed(*views).shape == (5, 30)
    method.split = lambda images: (images, images[:, :1], images[:, 1:])
    assert torch.equal(method.embed(views[0]), method.embed(views[0], views[0][:, :1], views[0][:, 1:]))


def test_nnclr_is_info_nce_with_the_nearest_queue_row():
    method = NNCLR(tiny(), 10, projection_dim=6, queue_size=32, temperature=0.2).eval()
    a, b = torch.rand(5, 3, 4, 4), torch.rand(5, 3, 4, 4)
    z = method.projection_head(method.embed(torch.cat([a, b])))
    p0, p1 = method.prediction_head(z).chunk(2)
    queue = method.queue.double()
    n0, n1 = queue[(rows64(z) @ queue.T).argmax(1)].chunk(2)
    expected = (cross_entropy64(n0, p1, 0.2) + cross_entropy64(n1, p0, 0.2)) / 2
    gradients_agree(method, method(a, b), expected)


def test_nnclr_pushes_the_first_views_and_the_gradient_does_not_see_it():
    method = NNCLR(tiny(), 10, projection_dim=6, queue_size=8)
    a, b = torch.rand(5, 3, 4, 4), torch.rand(5, 3, 4, 4)
    before, parameters = method.queue.clone(), list(method.parameters())
    z = method.projection_head(method.embed(torch.cat([a, b]))).detach()
    loss = method(a, b)
    torch.testing.assert_close(method.queue[:5], F.normalize(z[:5], dim=1))
    assert torch.equal(method.queue[5:], before[5:]) and int(method.queue_pointer) == 5
    method.queue.copy_(before)
    untouched = torch.autograd.grad(method(a, b), parameters)
    assert int(method.queue_pointer) == 2 and torch.equal(method.queue[2:5], before[2:5])
    method.queue.fill_(torch.nan)
    for x, y in zip(torch.autograd.grad(loss, parameters), untouched, strict=True):
        assert torch.equal(x, y)
    method.eval()(a, b)
    assert int(method.queue_pointer) == 2


@pytest.mark.parametrize("normalize, temperature", [(True, 0.2), (False, 1.0)])
def test_cpc_is_info_nce_of_each_step(normalize, temperature):
    steps = (1, 3)
    method = CPC(tiny(), 10, projection_dim=6, context_dim=7, steps=steps, normalize=normalize, temperature=temperature)
    sequences = torch.rand(4, 5, 3, 4, 4)
    z = method.backbone(sequences.flatten(0, 1)).unflatten(0, (4, 5))
    context, _ = method.context(z)
    unit = rows64 if normalize else torch.Tensor.double
    expected = 0.0
    for k, predict in zip(steps, method.predictions, strict=True):
        query = unit(torch.cat([predict(context[b, t])[None] for b in range(4) for t in range(5 - k)]))
        key = unit(torch.cat([method.target(z[b, t + k])[None] for b in range(4) for t in range(5 - k)]))
        expected = expected + F.cross_entropy(query @ key.T / temperature, torch.arange(len(query))) / len(steps)
    gradients_agree(method, method(sequences), expected)
    torch.testing.assert_close(method.embed(sequences), z.mean(1))


def test_cpc_predicts_from_the_past_alone():
    method = CPC(tiny(), 10, steps=(1,))
    sequences = torch.rand(2, 5, 3, 4, 4)
    changed = sequences.clone()
    changed[:, 3:] = 0.0
    one, other = (method.context(method.encode(x))[0] for x in (sequences, changed))
    assert [torch.equal(one[:, t], other[:, t]) for t in range(5)] == [True, True, True, False, False]


def test_patch_columns_run_from_top_to_bottom():
    images = torch.arange(2 * 36.0).reshape(2, 1, 6, 6)
    patches = patch_columns(images, 2, 1, 2)
    assert patches.shape == (2 * 3, 5, 1, 2, 2)
    for image, column, row in ((0, 0, 0), (0, 2, 4), (1, 1, 3)):
        expected = images[image, :, row : row + 2, 2 * column : 2 * column + 2]
        assert torch.equal(patches[3 * image + column, row], expected)


IMAGES = torch.rand(4, 3, 32, 32)
BAD_INPUT = [
    (lambda: SupCon(tiny(), 10, temperature=0.0), ValueError, "SupCon: temperature must be above 0"),
    (lambda: SupCon(tiny(), 10, base_temperature=-1.0), ValueError, "SupCon: base_temperature"),
    (lambda: SupCon(tiny(), 10)(IMAGES, IMAGES[:3]), ValueError, "SupCon: view0 and view1 must have the same shape"),
    (lambda: SupCon(tiny(), 10)(IMAGES, IMAGES, [0, 1, 0, 1]), TypeError, "SupCon: labels must be a tensor .*, got list"),
    (lambda: SupCon(tiny(), 10)(IMAGES, IMAGES, torch.rand(4)), TypeError, "SupCon: labels must have an integer dtype"),
    (lambda: SupCon(tiny(), 10)(IMAGES, IMAGES, torch.arange(3)), ValueError, r"labels must have shape \(4,\)"),
    (lambda: InstDisc(tiny(), 1, 10), ValueError, "InstDisc: num_samples"),
    (lambda: InstDisc(tiny(), 9, 10, momentum=1.0), ValueError, "InstDisc: momentum"),
    (lambda: InstDisc(tiny(), 9, 10)(None, torch.arange(4)), TypeError, "InstDisc: images must be a tensor"),
    (lambda: InstDisc(tiny(), 9, 10)(IMAGES, torch.arange(6, 10)), ValueError, r"index must lie in 0 to 8 .* got 6 to 9"),
    (lambda: CMC([tiny()], [10]), ValueError, "CMC: backbones must be at least 2"),
    (lambda: CMC([tiny(), tiny()], [10]), ValueError, "CMC: feature_dims"),
    (lambda: CMC([tiny(), tiny()], [10, 10], graph="star"), ValueError, "CMC: graph must be one of 'full', 'core'"),
    (lambda: CMC([tiny(), tiny()], [10, 10])(IMAGES), ValueError, "CMC: expected 2 views"),
    (lambda: CMC([tiny(), tiny()], [10, 10])(IMAGES, IMAGES[:3]), ValueError, "CMC: expected 2 views of the same B"),
    (lambda: NNCLR(tiny(), 10, queue_size=0), ValueError, "NNCLR: queue_size"),
    (lambda: NNCLR(tiny(), 10)(IMAGES[:1], IMAGES[:1]), ValueError, "NNCLR: .* B of at least 2"),
    (lambda: CPC(tiny(), 10, steps=()), ValueError, "CPC: steps"),
    (lambda: CPC(tiny(), 10, steps=(0, 1)), ValueError, "CPC: steps"),
    (lambda: CPC(tiny(), 10)(torch.rand(4, 3, 3, 4, 4)), ValueError, r"CPC: sequences .* longer than the .*step 3"),
    (lambda: CPC(tiny(), 7)(torch.rand(4, 5, 3, 4, 4)), ValueError, "CPC: the backbone gives 10 features, expected feature_dim=7"),
    (lambda: patch_columns(IMAGES, 40, 4, 4), ValueError, "patch_columns: size"),
]


@pytest.mark.parametrize("call, error, words", BAD_INPUT)
def test_bad_input_is_refused_with_a_message(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_feature_dims_are_found():
    encoder = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    made = (SimCLR(encoder), SupCon(encoder), InstDisc(encoder, 4), NNCLR(encoder, queue_size=4), CPC(encoder))
    assert [method.feature_dim for method in made] == [5] * 5 and CMC([encoder, encoder]).feature_dims == [5, 5]


# method: every which image, epochs, batch, least gain in kNN accuracy over the untrained encoder: at most half of the least that
# three seeds gave, since training on another CPU is another seed. CPC's mean over small patches is a good feature of texture
# before any training.
TRAINING = {
    "supcon": (8, 4, 64, 0.1),
    "instdisc": (8, 4, 64, 0.09),
    "cmc": (8, 4, 64, 0.06),
    "nnclr": (8, 4, 64, 0.05),
    "cpc": (16, 4, 32, 0.06),
}


@pytest.mark.parametrize("name", of_today(NEW, 5))
def test_training_beats_the_untrained_encoder(name):
    """A part of the photographs' crops, 24 x 24; kNN on held-out ones. The untrained encoder's batch norms are calibrated."""
    share, epochs, batch, gain = TRAINING[name]
    found = train_briefly(name, epochs=epochs, batch_size=batch, share=share, image_size=24)
    assert found.losses[-1] < found.losses[0] - 0.08
    assert found.after["knn"] > found.before["knn"] + gain


@needs_train
@pytest.mark.parametrize("name", of_today(NEW, 5))
def test_command_line_trains_and_resumes_bit_for_bit(name, tmp_path, capsys):
    """One epoch of two, then ``--resume``: weights, banks and queues of the run that was not interrupted."""
    from fastssl.__main__ import main
    from fastssl.train import cli, loop

    write_grey_classes(tmp_path / "images")
    where = ["--data", f"folder:{tmp_path / 'images'}", "--image-size", "16", "--batch-size", "8", "--accelerator", "cpu"]
    options = [name, *where, "--workers", "0", "--map", "pca", "--epochs", "2"]
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    assert main(["train", *options, "--out", str(whole)]) == 0
    said = capsys.readouterr().out
    assert f"{name}, conv, on folder:" in said and "weighted kNN" in said and "epoch   2/2" in said

    class OneEpoch(loop.pl.Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 1:
                raise RuntimeError("stopped")

    make_trainer = loop.make_trainer

    def stopped(*arguments, **how):
        trainer = make_trainer(*arguments, **how)
        trainer.callbacks.insert(0, OneEpoch())
        return trainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_trainer", stopped)
        with pytest.raises(RuntimeError, match="stopped"):
            cli.train([*options, "--out", str(parted)])
    assert main(["train", *options, "--out", str(parted), "--resume"]) == 0
    assert "resume: 1 of 2 epochs" in capsys.readouterr().out
    ours, theirs = (torch.load(run / "last.ckpt", weights_only=True) for run in (parted, whole))
    assert ours["fastssl"]["history"] == theirs["fastssl"]["history"]
    assert all(torch.equal(ours["state_dict"][key], value) for key, value in theirs["state_dict"].items())
    assert main(["eval", str(whole), "--data", "digits", "--map", "none"]) == 0


@needs_train
def test_supcon_needs_classes(tmp_path, capsys):
    from fastssl.__main__ import main

    write_grey_classes(tmp_path / "images")
    assert main(["train", "supcon", "--data", f"folder:{tmp_path / 'images' / 'dark'}", "--batch-size", "4"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "learns from classes, and all 12 training images are of one;" in said


@needs_train
def test_a_method_offers_its_own_options_only(capsys):
    from fastssl.__main__ import main

    assert main(["train", "simclr", "--queue-size", "8"]) == 2
    assert "--queue-size" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main(["train", "nnclr", "--help"])
    help = capsys.readouterr().out
    assert end.value.code == 0
    assert "--queue-size" in help and "(default: 0.1)" in help and "runs/nnclr" in help
