"""The documented way from a run to its encoder, as docs/training.md prints it; curves; what is said while training."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.support.training import needs_train, write_grey_classes

pytestmark = [needs_train, pytest.mark.usefixtures("one_thread")]
DOCS = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text()
SNIPPET = re.search(r"```python\n(import torch\n.*?)```", DOCS, re.DOTALL)[1]


def documented_prefixes() -> dict[str, list[str]]:
    """Method -> the prefixes that its row of the table names."""
    rows = re.findall(r"^\| ([a-z_0-9, ]+) \| (`method\..*) \|$", DOCS, re.MULTILINE)
    return {name: re.findall(r"`(method\.[a-z_.0-9]*\.)`", what) for names, what in rows for name in names.split(", ")}


def from_documentation(run: Path, images: torch.Tensor) -> torch.Tensor:
    code = SNIPPET.replace('"RUN"', repr(str(run)))
    names = {"images": images}
    with torch.no_grad():
        exec(code, names)
    return names["features"]


@pytest.mark.parametrize("name, more", [("simclr", []), ("moco", ["--backbone", "vit", "--patch-size", "8"]), ("clip", [])])
def test_the_documented_snippet_gives_the_features_of_the_run(name, more, tmp_path, capsys, monkeypatch):
    from fastssl.__main__ import main
    from fastssl.train import data
    from fastssl.train.checkpoints import find_checkpoint, restore_method
    from fastssl.train.recipes import RECIPES

    if name == "clip":
        monkeypatch.setattr(data, "PHOTOS_TRAIN", 6)
        monkeypatch.setattr(data, "PHOTOS_TEST", 2)
        more = ["--batch-size", "54"]
    else:
        write_grey_classes(tmp_path / "images")
        more = [*more, "--data", f"folder:{tmp_path / 'images'}", "--batch-size", "8", "--workers", "0"]
    options = [*more, "--image-size", "16", "--accelerator", "cpu", "--epochs", "1", "--map", "none", "--out", str(tmp_path)]
    assert main(["train", name, *options]) == 0
    said = capsys.readouterr().out
    assert ("patches of 8 x 8 pixels, 4 tokens an image" in said) == (name == "moco")
    images = torch.rand(3, 3, 16, 16)
    got = from_documentation(tmp_path, images)
    path, checkpoint = find_checkpoint(tmp_path)
    config = SimpleNamespace(**checkpoint["fastssl"]["config"])
    method = restore_method(checkpoint, RECIPES[name].load(config), path).eval()
    with torch.no_grad():
        expected = method.image_encoder(images) if name == "clip" else method.embed(images)
    assert torch.equal(got, expected)


def test_every_image_method_has_its_prefix_in_the_table():
    from fastssl.train.backbones import build_backbone
    from fastssl.train.recipes import RECIPES

    table = documented_prefixes()
    assert sorted(table) == sorted(name for name, recipe in RECIPES.items() if recipe.unit == "images")
    data = SimpleNamespace(image_size=32, channels=3, train=range(64), class_names=("a", "b"), vocabulary=20)
    for name, recipe in RECIPES.items():
        if name not in table:
            continue
        given = {"backbone": "vit"} if name == "cpc" else {}  # its encoder is made for patches of the image
        config = recipe.settings(**{"batch_size": 8, **given})
        state = {f"method.{key}": value for key, value in recipe.build(config, data).state_dict().items()}
        for prefix in table[name][: 1 if name == "simsiam" else None]:
            weights = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            assert weights, (name, prefix)
            if name not in ("split_brain", "image_gpt"):  # these make encoders of their own
                side, channels = 8 if name == "cpc" else 32, 1 if name == "colorization" else 3
                build_backbone(config.backbone, side, channels, patch_size=config.patch_size).load_state_dict(weights)


@pytest.mark.parametrize("untrained, trained", [(0.95, 0.93), (0.5, 0.5), (0.02, 0.0), (0.9, 0.2), (0.99, 1.0)])
def test_the_labels_of_the_curves_lie_beside_each_other(untrained, trained, tmp_path, monkeypatch):
    from fastssl.train import pictures

    drawn = []
    monkeypatch.setattr(pictures, "save", lambda figure, path: drawn.append(figure))
    rows = [(0, None, untrained), (1, 2.0, 0.4), (2, 1.0, trained)]
    history = [{"epoch": epoch, "loss": loss, "knn": knn} for epoch, loss, knn in rows]
    pictures.draw_curves(history, tmp_path / "curves.png", loss="L", score="knn", title="kNN")
    axis = drawn[0].axes[1]
    boxes = [text.get_window_extent() for text in axis.texts]
    assert {text.get_text() for text in axis.texts} == {f"untrained {untrained:.3f}", f"trained {trained:.3f}"}
    assert not boxes[0].overlaps(boxes[1]) and all(box.x0 >= axis.get_window_extent().x1 for box in boxes)
    pictures.plt.close(drawn[0])


def test_what_is_said_between_the_epochs(capsys, monkeypatch):
    """Without a terminal: lines with the epoch counted from 1, the step, and the time that all epochs take."""
    from fastssl.train import progress

    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    steps = progress.Steps(3, 4, 5)  # the fifth step of twelve is done
    for _ in range(7):
        clock.now += 20.0
        steps.step(torch.tensor(1.5))
    assert capsys.readouterr().out.splitlines() == [
        "epoch   2/3  step 3/4  loss 1.500  about 1 min 40 s left",
        "epoch   3/3  step 2/4  loss 1.500  about 40 s left",
    ]
    parts = progress.watched(range(5), 5, "embedding 5 images")
    for _ in parts:
        clock.now += 31.0
    assert capsys.readouterr().out.splitlines() == [f"  embedding 5 images: {done} of 5 batches" for done in (1, 2, 3, 4)]
    assert [progress.duration(s) for s in (7.4, 187, 3599.6, 7500)] == ["7 s", "3 min 07 s", "1 h 00 min", "2 h 05 min"]


def test_the_bar_counts_all_steps(capsys, monkeypatch):
    from fastssl.train import progress

    monkeypatch.setattr(progress, "terminal", lambda: True)
    steps = progress.Steps(3, 4, 5)
    for _ in range(3):
        steps.step(torch.tensor(1.5))
    assert (steps.bar.total, steps.bar.initial, steps.bar.n, steps.bar.desc) == (12, 5, 8, "epoch   2/3: ")
    progress.say("a line")
    steps.close()
    said = capsys.readouterr()
    assert said.out == "a line\n" and "epoch   2/3" in said.err and "v_num" not in said.err


def test_no_library_of_encoders(monkeypatch):
    """The reason is named: not installed, or what the import said."""
    from fastssl.train import UsageError, backbones

    monkeypatch.setattr(backbones, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"'resnet18'.*timm is not installed \(pip install timm\)"):
        backbones.build_backbone("resnet18")

    def broken(name):
        raise RuntimeError("operator torchvision::nms does not exist\nmore")

    monkeypatch.setattr(backbones, "find_spec", lambda name: name)
    monkeypatch.setattr(backbones, "usable_torchvision", lambda: "torchvision cannot be imported: why")
    monkeypatch.setattr(backbones.importlib, "import_module", broken)
    with pytest.raises(UsageError) as error:
        backbones.build_backbone("resnet18")
    assert "timm cannot be imported: RuntimeError: operator torchvision::nms does not exist (" in str(error.value)
    assert str(error.value).count("torchvision cannot be imported: why") == 2


def test_torchvision_without_its_compiled_half(monkeypatch):
    """Its operators are declared and it is imported again; what is still wrong then is said."""
    import fastssl.train as train

    calls = []

    def load(name):
        calls.append(name)
        if len(calls) == 1 or not healed:
            raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(train.importlib, "import_module", load)
    healed = True
    assert train.usable_torchvision() is None and calls == ["torchvision", "torchvision"]
    assert "iou_threshold" in str(torch.ops.torchvision.nms.default._schema)
    calls.clear()
    healed = False
    assert "RuntimeError: operator torchvision::nms does not exist (install" in train.usable_torchvision()


def test_a_batch_cut_short_is_seen_in_fewer_parts(tmp_path):
    """Of 8 images some are damaged: batch norms see parts of at least 2 each."""
    from fastssl.train.recipes import RECIPES

    recipe = RECIPES["moco"]
    config = recipe.settings(batch_size=8, bn_splits=4)
    data = SimpleNamespace(image_size=16, channels=3, train=range(16), mirror=True, colour=True, hue=True)
    method = recipe.build(config, data)
    module = SimpleNamespace(method=method, config=config, views=recipe.augment(config, data))
    for count, parts in ((7, 3), (2, 1), (8, 4)):
        loss = method(*recipe.arguments(module, (torch.rand(count, 3, 16, 16), torch.zeros(count))))
        assert method.bn_splits == parts and loss.isfinite()


def test_a_class_of_which_nothing_can_be_read(tmp_path, capsys):
    """Training goes on with the other; scores that need two classes are left out, and the class is named."""
    from fastssl.__main__ import main

    write_grey_classes(tmp_path / "images")
    for file in (tmp_path / "images" / "dark").iterdir():
        file.write_text("x")
    where = ["--data", f"folder:{tmp_path / 'images'}", "--image-size", "16", "--batch-size", "12", "--workers", "0"]
    options = [*where, "--accelerator", "cpu", "--epochs", "1", "--map", "pca"]
    assert main(["train", "simclr", *options, "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr()
    assert "kNN and linear probe left out" in said.out and "no file can be used of the class dark" in said.err
    for file in (tmp_path / "images" / "light").iterdir():
        file.write_text("x")
    for arguments in (["train", "mae", *options, "--out", str(tmp_path / "none")], ["eval", str(tmp_path / "run")]):
        assert main(arguments) == 2 and "none of 30 files looked at can be read" in capsys.readouterr().err


class Unreadable(torch.utils.data.Dataset):
    """Eight images, none of which can be read any more."""

    class_names, labels = ("a", "b"), torch.arange(8) % 2

    def __len__(self) -> int:
        return 8

    def __getitems__(self, indices: list[int]):
        return torch.empty(0, 3, 16, 16, dtype=torch.uint8), torch.empty(0, dtype=torch.int64)


def test_files_that_became_unreadable(tmp_path, monkeypatch):
    """No score, no picture, and a sentence from the first batch."""
    from fastssl.train import UsageError, recipes
    from fastssl.train.data import ImageData
    from fastssl.train.loop import MethodModule

    data = ImageData("folder:gone", Unreadable(), Unreadable(), 16)
    recipe = recipes.RECIPES["mae"]
    config = recipe.settings(data=data.name)
    method = recipe.build(config, data)
    assert recipe.monitor(method, data, config, device="cpu", workers=0, most=None, full=True) == {}
    assert recipe.draw(method, data, tmp_path, device="cpu") is None and not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match="--data folder:gone: a batch has 0 readable images"):
        MethodModule(method, config, data).on_after_batch_transfer(data.train.__getitems__([0, 1]), 0)


def test_features_that_are_nan_are_said():
    from fastssl.train import UsageError
    from fastssl.train.data import TensorImages
    from fastssl.train.evaluate import embed

    images = TensorImages(torch.zeros(5, 3, 8, 8, dtype=torch.uint8), torch.zeros(5, dtype=torch.int64), ("a",))
    with pytest.raises(UsageError, match="features of 5 of 5 images are NaN"):
        embed(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LogSoftmax(0), torch.nn.Threshold(0, torch.inf)), images, 8)
