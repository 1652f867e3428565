"""MAE, SimMIM, Inpainting and BERT in ``fastssl train``: errors beside a mean of neighbours, the picture, training, resume."""

import random
import time
from types import SimpleNamespace

import pytest
import torch

from tests.support.rotation import every, of_today
from tests.support.training import assert_same_runs, needs_train, part_of, train, train_until, write_grey_classes

NEW = ("mae", "simmim", "inpainting", "bert")
IMAGES = NEW[:3]

pytestmark = [needs_train, pytest.mark.usefixtures("one_thread")]


class Painter(torch.nn.Module):
    """A method that removes given patches and paints them in one grey."""

    patch_size = (2, 2)

    def __init__(self, mask, grey=0.25):
        super().__init__()
        self.mask, self.grey, self.draws = mask, grey, []

    def reconstruct(self, images, *, generator):
        from fastssl.train.reconstruct import pixel_mask

        self.draws.append(torch.rand(1, generator=generator).item())
        assert not self.training
        removed = pixel_mask(self.mask[: len(images)], images, self.patch_size) > 0
        return images.masked_fill(removed, 0.0), images.masked_fill(removed, self.grey), self.mask[: len(images)]


def few_images(count: int = 7, size: int = 8):
    from fastssl.train.data import ImageData, TensorImages

    pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    half = TensorImages(pixels, torch.arange(count) % 2, ("a", "b"))
    return ImageData("few", half, half, size)


def some_mask(count: int = 7) -> torch.Tensor:
    """(N, 16): in the last image only one patch is visible, in the first all but one."""
    mask = (torch.rand(count, 16, generator=torch.Generator().manual_seed(2)) < 0.6).float()
    mask[-1], mask[0] = 1.0, 0.0
    mask[-1, 15], mask[0, 5] = 0.0, 1.0
    return mask


def test_neighbour_fill_against_a_loop():
    from fastssl.train.reconstruct import neighbour_fill

    images, mask = torch.rand(7, 3, 8, 12), torch.rand(7, 24).round()
    mask[0], mask[1] = 1.0, 0.0
    mask[0, 23] = 0.0
    want = images.clone()
    for n in range(7):
        visible = {(i // 6, i % 6) for i in range(24) if mask[n, i] == 0}

        def colour(places, n=n):
            return torch.stack([images[n, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean((1, 2)) for y, x in places]).mean(0)

        for y, x in {(i // 6, i % 6) for i in range(24)} - visible:
            near = [(a, b) for a, b in sorted(visible) if abs(a - y) <= 1 and abs(b - x) <= 1]
            want[n, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2] = colour(near or sorted(visible))[:, None, None]
    torch.testing.assert_close(neighbour_fill(images, mask, (2, 2)), want)


def test_errors_are_of_removed_pixels_of_test_images():
    from fastssl.train.reconstruct import neighbour_fill, pixel_mask, reconstruction_errors

    data, mask = few_images(), some_mask()
    method = Painter(mask)
    scores = reconstruction_errors(method, data, device="cpu", workers=0, most=None)
    assert scores == reconstruction_errors(method, data, device="cpu", workers=0, most=20)
    assert method.draws[0] == method.draws[1] and method.training
    images = data.test.images / 255
    removed = pixel_mask(mask, images, (2, 2)).expand_as(images) > 0
    assert scores["error"] == pytest.approx((images[removed] - 0.25).square().mean().item(), rel=1e-5)
    fill = neighbour_fill(images, mask, (2, 2))
    assert scores["fill"] == pytest.approx((images - fill)[removed].square().mean().item(), rel=1e-5)
    method.norm_pix_loss = True  # it would know the mean of each removed patch
    assert reconstruction_errors(method, data, device="cpu", workers=0, most=None) == {}


def test_errors_of_noise_are_of_all_pixels():
    from fastssl.train.reconstruct import reconstruction_errors, smoothed

    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(smoothed(images)[:, :, 3, 4], images[:, :, 2:5, 3:6].mean((2, 3)))
    torch.testing.assert_close(smoothed(images)[:, :, 0, 7], images[:, :, :2, 6:].mean((2, 3)))
    data = few_images()
    method = Painter(torch.ones(7, 16))
    method.corruption = "noise"
    method.reconstruct = lambda images, *, generator: (images + 0.1, images + 0.2, torch.ones(7, 16))
    scores = reconstruction_errors(method, data, device="cpu", workers=0, most=None)
    whole = data.test.images / 255
    assert scores["error"] == pytest.approx(0.04, rel=1e-4)
    assert scores["fill"] == pytest.approx((smoothed(whole + 0.1) - whole).square().mean().item(), rel=1e-4)


def test_the_picture_shows_original_corrupted_and_painted(tmp_path):
    """Counted in its pixels: the colour that the method paints with, and the grey of what was removed."""
    import numpy
    from PIL import Image

    from fastssl.train.reconstruct import draw_reconstruction

    data, before = few_images(), torch.get_rng_state()
    share = {}
    for name, mask in (("some", some_mask()), ("none", torch.zeros(7, 16))):
        method = Painter(mask, grey=0.2)
        path = draw_reconstruction(method, data, tmp_path / name / "reconstruction.png", device="cpu")
        assert path.exists() and method.training and torch.equal(torch.get_rng_state(), before)
        with Image.open(path) as image:
            pixels = torch.from_numpy(numpy.array(image.convert("RGB")))
        share[name] = [(pixels == level).all(2).float().mean().item() for level in (51, 127)]
    assert min(share["some"]) > 0.02 and max(share["none"]) < 0.002


# --- training -------------------------------------------------------------------------------------------------------------

# method: epochs over a sixth of the photographs' crops, options
TRAINING = {
    "mae": (2, {"image_size": 16, "decoder_dim": 32, "batch_size": 32}),
    "simmim": (2, {"image_size": 16, "batch_size": 32}),
    "inpainting": (2, {"image_size": 16, "batch_size": 32, "mask_size": 4}),
    "noise": (2, {"image_size": 16, "batch_size": 32, "corruption": "noise", "sigma": 0.2}),
}


@pytest.mark.parametrize("name", of_today(TRAINING, len(TRAINING)))
def test_training_lowers_loss_and_error_of_test_images(name):
    from fastssl.train.recipes import RECIPES
    from fastssl.train.reconstruct import reconstruction_errors

    epochs, options = TRAINING[name]
    method_name = "inpainting" if name == "noise" else name
    recipe = RECIPES[method_name]
    config = recipe.settings(**options)
    data = part_of(recipe.load(config), 6, 9)
    torch.manual_seed(0)
    method = recipe.build(config, data)
    module = SimpleNamespace(method=method, views=recipe.augment(config, data), config=config, data=data)
    where = {"device": "cpu", "workers": 0, "most": None}
    before, started = reconstruction_errors(method, data, **where), time.process_time()
    means = train(module, recipe, epochs, config.batch_size)
    after, seconds = reconstruction_errors(method, data, **where), time.process_time() - started
    shown = " ".join(f"{mean:.4f}" for mean in means)
    print(f"\n{name}: loss {shown}; error {before['error']:.4f} -> {after['error']:.4f}, fill {after['fill']:.4f}, {seconds:.0f} s")
    assert after["fill"] == before["fill"]
    assert means[-1] < 0.8 * means[0] and after["error"] < 0.5 * before["error"]


@pytest.fixture(scope="module")
def phrases():
    """Every eighth training and every fourth test sentence, as whole words; which of them are neighbours is made up."""
    from dataclasses import replace

    from fastssl.train.sentences import TokenRows, sentences

    whole = sentences("sentences", pieces=False)
    halves = [TokenRows(half.tokens[::step], half.groups[::step]) for half, step in ((whole.train, 8), (whole.test, 4))]
    pairs = torch.arange(2 * (len(halves[1]) // 2)).view(-1, 2)  # the questions about neighbours need some
    return replace(whole, train=halves[0], test=halves[1], parts=whole.parts[::4], neighbours=pairs)


def test_bert_learns_to_name_hidden_words():
    """Texts that count upwards from any number: a hidden one is known from those around it and from nothing else."""
    from fastssl.methods import BERT
    from fastssl.train.recipes.bert import word_accuracy

    tokens = torch.arange(26)[:, None] + torch.arange(10)
    tokens = tokens.remainder(26) + 4
    tokens[::2, 7:] = 0
    data = SimpleNamespace(train=SimpleNamespace(tokens=tokens), test=SimpleNamespace(tokens=tokens.repeat(6, 1)))
    torch.manual_seed(0)
    method = BERT(31, mask_id=30, special_ids=(0, 1, 2, 3), width=32, length=10)
    optimizer, losses = torch.optim.AdamW(method.parameters(), 3e-3), []
    before = word_accuracy(method, data, device="cpu")
    for _ in range(150):
        optimizer.zero_grad()
        loss = method(tokens)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    after, again = (word_accuracy(method, data, device="cpu") for _ in range(2))
    print(f"\nbert: loss {losses[0]:.2f} -> {losses[-1]:.2f}, {before} -> {after}")
    assert after == again and before["commonest"] == after["commonest"] < 0.1
    assert before["accuracy"] < 0.15 and after["accuracy"] > 0.7


# --- the command line -----------------------------------------------------------------------------------------------------

OPTIONS = {
    "mae": ["--decoder-dim", "16", "--decoder-depth", "1", "--mask-ratio", "0.5"],
    "simmim": ["--mask-size", "4"],
    "inpainting": ["--corruption", "noise"],
}


def arguments(name: str, folder) -> list[str]:
    data = ["--data", f"folder:{folder}", "--image-size", "16", "--workers", "0"]
    options = [name, *data, *OPTIONS[name], "--batch-size", "8", "--epochs", "3", "--knn-every", "2", "--map", "none"]
    return [*options, "--accelerator", "cpu"]


@pytest.mark.parametrize("name", of_today(IMAGES, len(IMAGES)))
def test_a_run_stopped_at_any_step_resumes_bit_for_bit(name, tmp_path, capsys):
    from fastssl.__main__ import main

    write_grey_classes(tmp_path / "images")
    options, whole, parted = arguments(name, tmp_path / "images"), tmp_path / "whole", tmp_path / "parted"
    assert main(["train", *options, "--out", str(whole)]) == 0
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if line.startswith("epoch   2/3"))
    assert all(f" {word} " in line for word in ("kNN", "error", "fill")) and str(whole / "reconstruction.png") in said
    assert "squared error of removed" in said and "mean of neighbours" in said
    assert (whole / "reconstruction.png").stat().st_size > 2000
    stop = random.Random(name).randrange(6, 9)  # in the last epoch, behind a picture
    train_until(stop, [*options, "--out", str(parted)])
    assert (parted / "reconstruction.png").exists()
    (parted / "reconstruction.png").unlink()
    assert main(["train", *options, "--out", str(parted), "--resume"]) == 0
    assert "resume: 2 of 3 epochs" in capsys.readouterr().out and (parted / "reconstruction.png").exists()
    assert_same_runs(parted, whole)
    history = torch.load(whole / "last.ckpt", weights_only=True)["fastssl"]["history"]
    assert all("error" in row and "fill" in row for row in history if row["epoch"] != 1)
    (whole / "reconstruction.png").unlink()
    assert main(["eval", str(whole), "--map", "none"]) == 0
    assert (whole / "reconstruction.png").exists() and "squared error of removed" in capsys.readouterr().out


def test_images_without_classes_or_test_half_still_have_the_picture(tmp_path, capsys):
    from fastssl.__main__ import main

    write_grey_classes(tmp_path / "images")
    for file in sorted((tmp_path / "images" / "dark").iterdir())[4:]:
        file.unlink()
    options = arguments("mae", tmp_path / "images" / "dark")
    assert main(["train", *options, "--batch-size", "4", "--norm-pix-loss", "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr()
    assert (tmp_path / "run" / "reconstruction.png").exists() and "squared error" not in said.out


@every(3)
def test_bert_by_the_command_line(phrases, tmp_path, capsys, monkeypatch):
    from fastssl.__main__ import main
    from fastssl.train import sentences

    monkeypatch.setattr(sentences, "sentences", lambda *_, **__: phrases)
    options = ["--epochs", "2", "--map", "pca", "--accelerator", "cpu", "--out", str(tmp_path)]
    assert main(["train", "bert", *options]) == 0
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if line.startswith("epoch   2/2"))
    assert " accuracy " in line and " commonest " in line and "right answers, task mlm" in said
    assert not (tmp_path / "reconstruction.png").exists() and (tmp_path / "map.png").exists()
    first = (torch.load(tmp_path / "last.ckpt", weights_only=True))["fastssl"]["history"]
    assert main(["train", "bert", *options, "--epochs", "3", "--resume"]) == 0
    assert "resume: 2 of 2 epochs" not in capsys.readouterr().out
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["fastssl"]["history"][:3] == first
    assert main(["eval", str(tmp_path), "--map", "none"]) == 0 and "right answers, task mlm" in capsys.readouterr().out
    assert main(["train", "bert", "--mask-ratio", "1"]) == 2 and "--mask-ratio 1.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, named",
    of_today(
        [
            (["mae", "--backbone", "conv"], "--backbone: MAE: backbone must be a vision transformer"),
            (["mae", "--mask-ratio", "0.999"], "--mask-ratio: MAE: mask_ratio must remove some of 64 patches"),
            (["mae", "--mask-ratio", "1.5"], "--mask-ratio"),
            (["mae", "--decoder-dim", "30"], "--decoder-dim 30"),
            (["mae", "--image-size", "30"], "--image-size"),
            (["mae", "--temperature", "0.1"], "--temperature"),
            (["simmim", "--mask-size", "6"], "--mask-size: SimMIM: mask_size"),
            (["simmim", "--mask-size", "32"], "--mask-ratio: SimMIM: mask_ratio"),
            (["simmim", "--norm-pix-loss"], "--norm-pix-loss"),
            (["inpainting", "--backbone", "vit"], "--backbone: Inpainting: backbone"),
            (["inpainting", "--mask-size", "7"], "--mask-size: Inpainting: mask_size"),
            (
                ["inpainting", "--image-size", "16", "--mask-size", "6"],
                "--mask-size: Inpainting: mask_size must divide image_size 16",
            ),
            (["inpainting", "--image-size", "20"], "--image-size 20: must be a multiple of 16 for inpainting with --backbone conv"),
            (
                ["simmim", "--mask-ratio", "0.999"],
                "--mask-size: no square of 4 to 8 pixels divides an image of 32 x 32 and leaves and",
            ),
            (["inpainting", "--corruption", "holes"], "--corruption"),
            (["inpainting", "--sigma", "0"], "--sigma"),
            (["bert", "--data", "triples"], "--data"),
            (["bert", "--mask-ratio", "0"], "--mask-ratio"),
            (["mae", "--mask-ratio", "1"], "--mask-ratio"),
            (["bert", "--backbone", "conv"], "--backbone"),
        ],
        3,
    ),
)
def test_wrong_options_are_one_line(options, named, capsys):
    from fastssl.__main__ import main

    data = [] if options[0] == "bert" else ["--data", "digits"]
    assert main(["train", *data, *options]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and named in said and "error:" in said


@pytest.mark.parametrize(
    "name, size, ratio, wanted",
    [
        ("inpainting", 32, 0.25, 8),
        ("inpainting", 16, 0.9, 4),  # of four squares 0.9 leaves none
        ("simmim", 32, 0.6, 8),
        ("simmim", 12, 0.6, 4),
        ("simmim", 8, 0.6, 4),  # of one square of two patches nothing would be left
        ("simmim", 16, 0.8, 4),
    ],
)
def test_the_squares_that_are_removed_fit_the_image(name, size, ratio, wanted):
    from fastssl.train.recipes import RECIPES

    config = RECIPES[name].settings(mask_ratio=ratio)
    built = RECIPES[name].build(config, SimpleNamespace(image_size=size, channels=3))
    assert (built.patch_size[0] if name == "inpainting" else built.unit * built.patch_size[0]) == wanted


def test_the_largest_square_that_fits():
    from fastssl.train import UsageError
    from fastssl.train.recipes._masked import fitting_size

    sizes = range(8, 0, -1)
    for side, ratio, wanted in ((48, 0.25, 8), (20, 0.25, 5), (36, 0.25, 6), (26, 0.25, 2), (13, 0.25, 1), (20, 0.97, 2)):
        assert fitting_size([side] * 2, sizes, ratio) == wanted
    with pytest.raises(UsageError, match="--mask-size: no square of 1 to 8 pixels divides an image of 8 x 8 and"):
        fitting_size([8, 8], sizes, 0.999)


def test_noise_takes_no_notice_of_the_squares():
    """An image of 48 pixels that 9 does not divide, and one that nothing from 8 down would leave some of."""
    from fastssl.train.recipes import RECIPES

    for size, mask_size, ratio in ((48, 9, 0.25), (16, None, 0.9999)):
        config = RECIPES["inpainting"].settings(corruption="noise", mask_size=mask_size, mask_ratio=ratio)
        method = RECIPES["inpainting"].build(config, SimpleNamespace(image_size=size, channels=3))
        assert method(torch.rand(2, 3, size, size)).isfinite()


@every(3)
def test_masked_methods_offer_their_own_options(capsys):
    from fastssl.__main__ import main

    for method, wanted in {
        "mae": ["--mask-ratio", "--norm-pix-loss", "--decoder-dim", "(default: vit)"],
        "simmim": ["--mask-size", "(default: 0.6)"],
        "inpainting": ["--corruption", "--sigma", "(default: conv)"],
        "bert": ["--mask-ratio", "(default: 0.15)", "sentences"],
    }.items():
        with pytest.raises(SystemExit):
            main(["train", method, "--help"])
        said = capsys.readouterr().out
        assert all(option in said for option in wanted) and f"runs/{method}" in said
