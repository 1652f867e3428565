"""Encoders that leave: ``fastssl.load`` and ``fastssl export``, whose files are loaded as the card beside them says."""

import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import fastssl
from tests.support.rotation import of_today
from tests.support.training import needs_train, write_grey_classes
from tests.support.written_runs import write_run

pytestmark = [needs_train, pytest.mark.usefixtures("one_thread")]
ROLES = {
    "moco": "student",
    "byol": "student",
    "dino": "student",
    "ijepa": "teacher",
    "mean_teacher": "teacher",
    "simclr": "encoder",
}
TOGETHER = ("cmc", "cpc", "colorization", "split_brain", "jigsaw", "relative_position", "image_gpt")
OTHERS = (
    "moco_v3",
    "simsiam",
    "ibot",
    "swav",
    "lejepa",
    "deepcluster",
    "simmim",
    "inpainting",
    "exemplar",
    "pirl",
    "time_contrastive",
)
PLACES = {  # where docs/training.md says that the weights begin
    "simclr": "backbone.",
    "moco": "encoder.backbone.",
    "byol": "encoder.backbone.",
    "dino": "encoder.backbone.",
    "ijepa": "teacher.module.",
    "mean_teacher": "teacher.module.backbone.",
}


def export(*words: object) -> int:
    from fastssl.__main__ import main

    return main(["export", *map(str, words)])


def used_as_the_card_says(folder: Path, monkeypatch) -> dict:
    """The variables of the card's example, which ran in the folder of the card."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)[1]
    monkeypatch.chdir(folder)
    names: dict = {}
    with torch.no_grad():
        exec(code, names)
    return names


def check_card(run: Path, folder: Path, monkeypatch, tolerance: float = 1e-5) -> dict:
    names = used_as_the_card_says(folder, monkeypatch)
    wanted = fastssl.load(run)(names["images"])
    torch.testing.assert_close(torch.as_tensor(names["features"]), wanted, rtol=0, atol=tolerance * wanted.abs().max().item())
    return names


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A run of SimCLR on a folder of images."""
    place = tmp_path_factory.mktemp("written")
    write_grey_classes(place / "images")
    write_run(place / "run", "simclr", data=f"folder:{place / 'images'}", image_size=16, epochs=2, batch_size=8)
    return place / "run"


@pytest.fixture
def run(written, tmp_path) -> Path:
    """The same run in a folder of its own."""
    (tmp_path / "run").mkdir()
    shutil.copy(written / "last.ckpt", tmp_path / "run")
    return tmp_path / "run"


def test_load_gives_what_eval_scores(written):
    from fastssl.train.checkpoints import config_of, read_checkpoint, restore_method
    from fastssl.train.data import load_data
    from fastssl.train.evaluate import embed

    checkpoint = read_checkpoint(written / "last.ckpt")
    data = load_data(config_of(checkpoint).data, 16)
    wanted, _ = embed(restore_method(checkpoint, data, written), data.test, 16)
    torch.manual_seed(1)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    encoder = fastssl.load(written)
    assert torch.equal(torch.rand(1), drawn), "torch's generator moved"
    assert not encoder.training and (encoder.image_size, encoder.channels, encoder.num_features) == (16, 3, 256)
    assert (encoder.method, encoder.backbone_name, encoder.role, encoder.mean, encoder.std) == ("simclr", "conv", "encoder", 0, 1)
    with torch.no_grad():
        assert torch.equal(encoder(torch.stack([encoder.read(path) for path in data.test.paths])), wanted)
        assert torch.equal(
            encoder.backbone(torch.ones(1, 3, 16, 16)), fastssl.load(str(written / "last.ckpt"))(torch.ones(1, 3, 16, 16))
        )


@pytest.mark.parametrize("name", [*of_today(ROLES, 2), *of_today(TOGETHER, 7), *of_today(OTHERS, 11)])
def test_load_needs_no_data_and_gives_the_features_of_the_method(name, tmp_path):
    options = {"data": f"folder:{tmp_path}/gone"} | ({"backbone": "vit"} if name in ("ijepa", "simmim", "dino") else {})
    method = write_run(tmp_path, name, **({} if name == "time_contrastive" else options))
    encoder = fastssl.load(tmp_path)
    images = torch.rand(3, 3, encoder.image_size, encoder.image_size)
    with torch.no_grad():
        wanted = method.embed(images)
        torch.testing.assert_close(encoder(images), wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())
        assert (encoder.backbone is None) == (name in TOGETHER) and encoder.num_features == wanted.shape[1]
    if name in ROLES:
        assert encoder.role == ROLES[name]
        weights = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
        for key, value in encoder.backbone.state_dict().items():
            assert torch.equal(weights[f"method.{PLACES[name]}{key}"], value)


def test_what_load_refuses(tmp_path):
    with pytest.raises(TypeError, match=r"^load: run must be the path of a run or of a checkpoint, got 3$"):
        fastssl.load(3)
    with pytest.raises(ValueError, match=r"^load: device must name a device of torch, such as cpu or cuda, got 'nope'$"):
        fastssl.load(tmp_path, device="nope")
    with pytest.raises(ValueError, match=r"^load: device must be one that computes here, got 'meta': "):
        fastssl.load(tmp_path, device="meta")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"^load: device must be one that computes here, got 'cuda': \S+"):
            fastssl.load(tmp_path, device="cuda")
    with pytest.raises(ValueError, match=r"^load: RUN .*gone: no such file or directory$"):
        fastssl.load(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"^load: RUN .* there is no checkpoint in it$"):
        fastssl.load(tmp_path)
    write_run(tmp_path, "simclr")
    encoder = fastssl.load(tmp_path)
    with pytest.raises(TypeError, match=r"images must be a floating tensor of pixels in \[0, 1\], got torch.uint8"):
        encoder(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"images must have shape \(B, 3, H, W\), got \(1, 1, 32, 32\)"):
        encoder(torch.zeros(1, 1, 32, 32))
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises((ValueError, OSError)):
        encoder.read(tmp_path / "text.png")
    with pytest.raises(FileNotFoundError):
        encoder.read(tmp_path / "none.png")


def altered(run: Path, change) -> None:
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, run / "last.ckpt")


def deep(run: Path) -> None:
    write_run(run, "mae", backbone="vit", image_size=16)
    altered(run, lambda c: c["fastssl"]["config"].update(decoder_depth=10**9))


def long_queue(run: Path) -> None:
    write_run(run, "moco", image_size=16)
    altered(run, lambda c: c["fastssl"]["config"].update(queue_size=10**9))


HOSTILE = {
    "text": (lambda run: altered(run, lambda c: c["fastssl"]["config"].update(method="gpt", backbone="")), "learns from"),
    "no size": (
        lambda run: altered(run, lambda c: c["fastssl"].update(image_size=None)),
        "image size must be 1 to 8192 pixels, got None",
    ),
    "a large size": (lambda run: altered(run, lambda c: c["fastssl"].update(image_size=10**9)), "got 1000000000"),
    "cut short": (lambda run: (run / "last.ckpt").write_bytes((run / "last.ckpt").read_bytes()[:5000]), "cut short"),
    "NaN": (lambda run: altered(run, lambda c: c["state_dict"]["method.backbone.0.weight"].fill_(torch.nan)), "NaN"),
    "a weight gone": (lambda run: altered(run, lambda c: c["state_dict"].pop("method.backbone.0.weight")), "is missing"),
    "many samples": (lambda run: altered(run, lambda c: c["fastssl"]["data"]["train"].update(count=10**13)), None),
    "a wide head": (
        lambda run: altered(run, lambda c: c["fastssl"]["config"].update(projection_dim=10**9)),
        "far larger than its weights",
    ),
    "a deep decoder": (deep, "far larger than its weights"),
    "a long queue": (long_queue, "far larger than its weights"),
    "an object": (lambda run: torch.save({"fastssl": Path("x")}, run / "last.ckpt"), "more than tensors"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_checkpoint_is_refused_by_load_and_export(name, run, capsys):
    spoil, reason = HOSTILE[name]
    spoil(run)
    before = files(run)
    if reason is None:  # what it claims is not asked for
        assert export(run, "--to", "torch") == 0
        return
    assert export(run, "--to", "torch") == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and reason in said.err and not said.out and files(run) == before, said
    with pytest.raises(ValueError, match=re.escape(reason)):
        fastssl.load(run)


def test_torch_takes_the_built_in_convolutions_without_fastssl(run, monkeypatch, capsys):
    assert export(run, "--to", "torch") == 0
    said = capsys.readouterr().out
    folder = run / "export/torch"
    assert files(folder) == {"model.pth", "README.md"} and str(folder / "model.pth") in said and "bit for bit" in said
    assert "6 images of folder:" in said  # its test images
    names = check_card(run, folder, monkeypatch)
    card = (folder / "README.md").read_text()
    assert "fastssl" not in re.search(r"```python\n(.*?)```", card, re.S)[1]
    assert all(type(value) is torch.Tensor for value in torch.load(folder / "model.pth", weights_only=True).values())
    assert "fastssl train simclr --data folder:images --image-size 16 --epochs 2 --batch-size 8" in card
    assert str(run.parent) not in card and names["features"].shape == (4, 256)
    assert export(run, "--to", "torch") == 0, "an export may replace an earlier one"


def test_the_card_is_one_that_the_hub_reads(run):
    hub = pytest.importorskip("huggingface_hub")
    assert export(run, "--to", "torch") == 0
    data = hub.ModelCard.load(run / "export/torch/README.md").data
    assert data.library_name == "pytorch" and data.pipeline_tag == "image-feature-extraction" and "simclr" in data.tags
    (result,) = data.eval_results
    history = torch.load(run / "last.ckpt", weights_only=True)["fastssl"]["history"]
    assert result.metric_value == pytest.approx(history[-1]["knn"], abs=1e-4) and result.dataset_name == "folder:images"


needs_timm = pytest.mark.skipif(not (find_spec("timm") and find_spec("safetensors")), reason="timm is not installed")


@needs_timm
def test_timm_takes_the_built_in_transformer(tmp_path, monkeypatch):
    write_run(tmp_path, "dino", backbone="vit", channels=1)  # with a class token
    assert export(tmp_path, "--to", "timm", "--out", tmp_path / "timm") == 0
    model = check_card(tmp_path, tmp_path / "timm", monkeypatch)["model"]
    assert type(model).__module__.startswith("timm.") and files(tmp_path / "timm") == {"model.safetensors", "README.md"}


@needs_timm
def test_pixels_that_are_normalised(tmp_path, monkeypatch):
    """MAE's encoder wants (pixel - 0.5) / 0.25: the example does that, and the module of ``fastssl.load``."""
    write_run(tmp_path, "mae", backbone="vit", image_size=16)
    assert export(tmp_path, "--to", "timm") == 0
    check_card(tmp_path, tmp_path / "export/timm", monkeypatch)
    assert "features = model((images - 0.5) / 0.25)" in (tmp_path / "export/timm/README.md").read_text()


@needs_timm
@pytest.mark.parametrize("backbone", of_today(["timm:resnet18", "torchvision:resnet18"], 2))
@pytest.mark.parametrize("target", of_today(["torch", "timm", "torchvision", "safetensors"], 4))
def test_models_of_libraries(backbone, target, tmp_path, monkeypatch):
    """timm's and torchvision's resnet18 have the same weights by the same names, and each takes the other's."""
    write_run(tmp_path, "simclr", backbone=backbone)
    assert export(tmp_path, "--to", target) == 0
    model = check_card(tmp_path, tmp_path / "export" / target, monkeypatch)["model"]
    library = target if target in ("timm", "torchvision") else backbone.partition(":")[0]
    assert type(model).__module__.startswith(library)
    if target == "safetensors":
        with pytest.importorskip("safetensors").safe_open(tmp_path / "export/safetensors/model.safetensors", "pt") as file:
            assert file.metadata()["method"] == "simclr" and file.metadata()["num_features"] == "512"


@needs_timm
@pytest.mark.parametrize(
    "backbone, target, fits",
    [("conv", "timm", "torch, safetensors, onnx"), ("vit", "torchvision", "torch, timm, safetensors, hf, onnx")],
)
def test_a_target_that_does_not_know_the_backbone(backbone, target, fits, tmp_path, capsys):
    write_run(tmp_path, "simclr", backbone=backbone)
    assert export(tmp_path, "--to", target) == 2
    assert capsys.readouterr().err.endswith(f"no model there has the weights of --backbone {backbone}; --to {fits} fit\n")
    assert files(tmp_path) == {"last.ckpt"}


def test_features_that_need_the_whole_method(tmp_path, capsys):
    write_run(tmp_path, "cmc")
    assert export(tmp_path, "--to", "torch") == 2
    assert (
        f"the features of cmc need more of the method than one backbone, which no other library has; fastssl.load('{tmp_path}')"
        in capsys.readouterr().err
    )


def test_other_features_are_not_written(run, capsys, monkeypatch):
    """What is in the file is compared, and not what was meant to be: a weight that is written wrongly is seen."""
    from fastssl.train import targets

    def wrong(encoder):
        weights = right(encoder)
        weights["0.weight"][0, 0, 0, 0] += 0.5
        return weights

    right = targets.weights_of
    monkeypatch.setattr(targets, "weights_of", wrong)
    assert export(run, "--to", "torch") == 2
    assert "--to torch: loaded by torch the features differ by" in capsys.readouterr().err and files(run) == {"last.ckpt"}


def test_what_is_not_replaced(run, capsys):
    """A folder with a README.md or weights of somebody else's, a file, and the name of a file."""
    theirs = run / "theirs"
    theirs.mkdir()
    for name, text in (("README.md", "# Mine\n"), ("model.pth", "weights")):
        (theirs / name).write_text(text)
        assert export(run, "--to", "torch", "--out", theirs) == 2
        assert "holds files that fastssl export did not write" in capsys.readouterr().err and files(theirs) == {name}
        (theirs / name).unlink()
    for path in (run / "last.ckpt", run / "encoder.pth"):
        assert export(run, "--to", "torch", "--out", path) == 2
        assert "must be a folder, for model.pth and README.md" in capsys.readouterr().err
    assert files(run) == {"last.ckpt", "theirs"}


def test_data_that_are_gone_and_packages_that_are_missing(run, capsys, monkeypatch):
    from fastssl.train import targets

    altered(run, lambda c: c["fastssl"]["config"].update(data=f"folder:{run}/gone"))
    assert export(run, "--to", "torch") == 0
    said = capsys.readouterr()
    assert "16 generated images" in said.out and "features are compared on generated images" in said.err
    monkeypatch.setattr(targets, "find_spec", lambda name: None)
    assert export(run, "--to", "onnx") == 2
    assert (
        "--to onnx: needs onnx and onnxscript and onnxruntime: pip install onnx onnxscript onnxruntime\n" in capsys.readouterr().err
    )
    assert export(run, "--to", "tim") == 2 and "did you mean timm?" in capsys.readouterr().err


needs_onnx = pytest.mark.skipif(not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))), reason="ONNX is not installed")


@needs_onnx
@pytest.mark.parametrize("name, backbone", of_today([("mae", "vit"), ("simclr", "conv"), ("dino", "vit")], 6))
def test_onnx_runs_with_any_number_of_images(name, backbone, tmp_path, monkeypatch):
    """The graph takes pixels from 0 to 1, as ``fastssl.load``'s module does."""
    write_run(tmp_path, name, backbone=backbone, image_size=16)
    assert export(tmp_path, "--to", "onnx") == 0
    session = check_card(tmp_path, tmp_path / "export/onnx", monkeypatch, 1e-4)["session"]
    images, encoder = torch.rand(3, 3, 16, 16), fastssl.load(tmp_path)
    with torch.no_grad():
        for count in (1, 3):
            features = torch.from_numpy(session.run(None, {"images": images[:count].numpy()})[0])
            torch.testing.assert_close(features, encoder(images[:count]), rtol=1e-4, atol=1e-4)
    assert session.get_modelmeta().custom_metadata_map["method"] == name


@needs_timm
@pytest.mark.parametrize("library", of_today(["transformers", "timm"], 4))
def test_a_folder_of_the_hub_is_loaded_by_both_libraries(library, tmp_path, monkeypatch):
    """Its config.json also has what the transforms of both libraries do."""
    write_run(tmp_path, "mae", backbone="vit", image_size=16)
    assert export(tmp_path, "--to", "hf") == 0
    images, folder, module = torch.rand(2, 3, 16, 16), tmp_path / "export/hf", pytest.importorskip(library)
    check_card(tmp_path, folder, monkeypatch)
    config = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    assert (config["mean"], config["std"], config["input_size"]) == ([0.5] * 3, [0.25] * 3, [3, 16, 16])
    assert not {"license", "tag"} & config.keys(), "these are of other weights"
    with torch.no_grad():
        if library == "timm":
            features = module.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()((images - 0.5) / 0.25)
        elif module.utils.is_timm_available():
            features = module.AutoModel.from_pretrained(folder).eval()((images - 0.5) / 0.25).pooler_output
        else:
            pytest.skip("transformers finds no timm")
        torch.testing.assert_close(features, fastssl.load(tmp_path)(images), rtol=0, atol=1e-5)
