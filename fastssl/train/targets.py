"""What an encoder is exported to: for each target the files, how they are written, and how a user of the target loads them."""

import importlib
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastssl.methods._encoder import pooled
from fastssl.train import UsageError
from fastssl.train.archives import first_line
from fastssl.train.encoders import RunEncoder
from fastssl.train.makers import Maker, backbone_of, own_maker, timm_maker, torchvision_maker

Features = Callable[[Tensor], Tensor]  # images (B, C, S, S) of pixels in [0, 1] -> features (B, D)
OPSET = 18


@dataclass(frozen=True)
class Target:
    """A library or format that an encoder leaves for.

    Args:
        file: the file with the weights.
        packages: what has to be installed to write and to load it.
        maker: (encoder) -> what makes an empty model there, or None where the target has none of this architecture.
        write: (encoder, maker, folder, metadata) -> None, writes the files.
        read: (encoder, maker, folder) -> loaders by name, each of which returns the features of images by the files alone.
        imports: lines of the example that loads the file.
        code: the example: (encoder, maker) -> lines that bind ``features`` of ``images``.
        tag: the hub's name of the library.
        least: the largest difference from the run's features that is rounding, as a share of the largest feature.
    """

    file: str
    packages: tuple[str, ...]
    maker: Callable[[RunEncoder], Maker | None]
    write: Callable[[RunEncoder, Maker, Path, dict[str, str]], None]
    read: Callable[[RunEncoder, Maker, Path], dict[str, Callable[[], Features]]]
    code: Callable[[RunEncoder, Maker], list[str]]
    imports: Callable[[Maker], tuple[str, ...]] = lambda maker: maker.imports
    tag: str = "pytorch"
    least: float = 1e-5


def weights_of(encoder: RunEncoder) -> dict[str, Tensor]:
    """The weights of the backbone alone by its own names: tensors of their own on the CPU."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in backbone_of(encoder).state_dict().items()}


def loaded(encoder: RunEncoder, model: nn.Module) -> Features:
    """The features of a model that has no normalisation of its own."""
    model.eval()

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        return pooled(model(encoder.normalised(images)), len(images), "export", "loaded model")

    return features


def taking(maker: Maker, weights: dict[str, Tensor]) -> nn.Module:
    """The model with the weights, all of which it must have by name and shape."""
    model = maker.make()
    model.load_state_dict(weights)
    return model


def fitting(target: Target, encoder: RunEncoder) -> Maker | None:
    """What makes a model of the target for the weights of the encoder; None where it knows none that has just these."""
    maker = target.maker(encoder)
    if maker is None:
        return None
    shapes = {name: value.shape for name, value in backbone_of(encoder).state_dict().items()}
    return maker if {name: value.shape for name, value in maker.make().state_dict().items()} == shapes else None


def refuse_missing(name: str, target: Target) -> None:
    """Raises UsageError where a package is not installed that the target needs."""
    missing = [package for package in target.packages if find_spec(package) is None]
    if missing:
        raise UsageError(f"--to {name}: needs {' and '.join(missing)}: pip install {' '.join(missing)}")


# --- a file of weights for torch, torchvision, timm, or as safetensors --------------------------------------------------------


def _save_torch(encoder: RunEncoder, maker: Maker, folder: Path, metadata: dict[str, str]) -> None:
    with open(folder / "model.pth", "wb") as file:  # by its name torch would not say why it cannot be written
        torch.save(weights_of(encoder), file)


def _save_safetensors(encoder: RunEncoder, maker: Maker, folder: Path, metadata: dict[str, str]) -> None:
    save = importlib.import_module("safetensors.torch").save_file
    save(weights_of(encoder), folder / "model.safetensors", metadata={"format": "pt", **metadata})


def _load_torch(encoder: RunEncoder, maker: Maker, folder: Path) -> dict[str, Callable[[], Features]]:
    def load() -> Features:
        return loaded(encoder, taking(maker, torch.load(folder / "model.pth", weights_only=True)))

    return {maker.library: load}


def _load_safetensors(encoder: RunEncoder, maker: Maker, folder: Path) -> dict[str, Callable[[], Features]]:
    def load() -> Features:
        return loaded(encoder, taking(maker, importlib.import_module("safetensors.torch").load_file(folder / "model.safetensors")))

    return {maker.library: load}


def _load_timm(encoder: RunEncoder, maker: Maker, folder: Path) -> dict[str, Callable[[], Features]]:
    return {"timm": lambda: loaded(encoder, maker.make(checkpoint_path=str(folder / "model.safetensors")))}


def applied(encoder: RunEncoder, maker: Maker) -> str:
    """The line of an example that gives images to ``model``."""
    plain = (encoder.mean, encoder.std) == (0.0, 1.0)
    call = f"model({'images' if plain else f'(images - {encoder.mean:g}) / {encoder.std:g}'})"
    return f"features = {call}"


def _torch_code(encoder: RunEncoder, maker: Maker) -> list[str]:
    load = 'model.load_state_dict(torch.load("model.pth", weights_only=True))'
    return [maker.written(), load, "model.eval()", applied(encoder, maker)]


def _safetensors_code(encoder: RunEncoder, maker: Maker) -> list[str]:
    load = 'model.load_state_dict(load_file("model.safetensors"))'
    return [maker.written(), load, "model.eval()", applied(encoder, maker)]


def _timm_code(encoder: RunEncoder, maker: Maker) -> list[str]:
    return [maker.written(', checkpoint_path="model.safetensors"'), "model.eval()", applied(encoder, maker)]


# --- a folder as the hub has them ----------------------------------------------------------------------------------------------


def pixel_config(encoder: RunEncoder) -> dict[str, Any]:
    """What timm notes of the images of a model, so that its transforms do what ``fastssl eval`` does."""
    return {
        "input_size": (encoder.channels, encoder.image_size, encoder.image_size),
        "mean": (encoder.mean,) * encoder.channels,
        "std": (encoder.std,) * encoder.channels,
        "interpolation": "bicubic",
        "crop_pct": 0.8,
        "crop_mode": "center",
    }


def _save_hub(encoder: RunEncoder, maker: Maker, folder: Path, metadata: dict[str, str]) -> None:
    save = importlib.import_module("timm.models").save_for_hf
    save(taking(maker, weights_of(encoder)), folder, safe_serialization=True, data_config=pixel_config(encoder))
    config = json.loads((folder / "config.json").read_text())
    config["model_args"].pop("num_classes", None)  # transformers gives it too, and takes no second one
    for of_others in ("tag", "license"):  # of the weights that timm has for this architecture
        config["pretrained_cfg"].pop(of_others, None)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _load_hub(encoder: RunEncoder, maker: Maker, folder: Path) -> dict[str, Callable[[], Features]]:
    def by_timm() -> Features:
        return loaded(encoder, importlib.import_module("timm").create_model(f"local-dir:{folder}", pretrained=True, num_classes=0))

    def by_transformers() -> Features:
        transformers = importlib.import_module("transformers")
        transformers.utils.logging.disable_progress_bar()
        model = transformers.AutoModel.from_pretrained(folder).eval()

        @torch.no_grad()
        def features(images: Tensor) -> Tensor:
            return model(encoder.normalised(images)).pooler_output

        return features

    loaders: dict[str, Callable[[], Features]] = {"timm": by_timm}
    both = find_spec("transformers") and importlib.import_module("transformers.utils").is_timm_available()
    return loaders | ({"transformers": by_transformers} if both else {})


def _hub_code(encoder: RunEncoder, maker: Maker) -> list[str]:
    timm = 'model = timm.create_model("local-dir:.", pretrained=True, num_classes=0).eval()'
    return [timm, applied(encoder, maker)]


# --- ONNX ----------------------------------------------------------------------------------------------------------------------


class Pixels(nn.Module):
    """The encoder with its normalisation and its mean over positions, as a graph of plain operations."""

    def __init__(self, encoder: RunEncoder):
        super().__init__()
        self.backbone, self.mean, self.std = backbone_of(encoder), encoder.mean, encoder.std

    def forward(self, images: Tensor) -> Tensor:
        features = self.backbone((images - self.mean) / self.std)
        return features if features.ndim == 2 else features.flatten(2).mean(2)


def _save_onnx(encoder: RunEncoder, maker: Maker, folder: Path, metadata: dict[str, str]) -> None:
    images = torch.rand(2, encoder.channels, encoder.image_size, encoder.image_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about its own parts
        program = torch.onnx.export(
            Pixels(encoder).eval(),
            (images,),
            input_names=["images"],
            output_names=["features"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(metadata)
    program.save(folder / "model.onnx", external_data=False)


def _load_onnx(encoder: RunEncoder, maker: Maker, folder: Path) -> dict[str, Callable[[], Features]]:
    def load() -> Features:
        session = importlib.import_module("onnxruntime").InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    return {"onnxruntime": load}


def _onnx_code(encoder: RunEncoder, maker: Maker) -> list[str]:
    session = 'session = onnxruntime.InferenceSession("model.onnx")'
    return [session, 'features = session.run(None, {"images": images.numpy()})[0]']


def _adding(*more: str) -> Callable[[Maker], tuple[str, ...]]:
    return lambda maker: (*maker.imports, *more)


TARGETS = {
    "torch": Target("model.pth", (), own_maker, _save_torch, _load_torch, _torch_code),
    "timm": Target("model.safetensors", ("timm", "safetensors"), timm_maker, _save_safetensors, _load_timm, _timm_code, tag="timm"),
    "torchvision": Target("model.pth", ("torchvision",), torchvision_maker, _save_torch, _load_torch, _torch_code),
    "safetensors": Target(
        "model.safetensors",
        ("safetensors",),
        own_maker,
        _save_safetensors,
        _load_safetensors,
        _safetensors_code,
        _adding("from safetensors.torch import load_file"),
    ),
    "hf": Target(
        "model.safetensors",
        ("timm", "safetensors", "huggingface_hub"),
        timm_maker,
        _save_hub,
        _load_hub,
        _hub_code,
        lambda maker: ("import timm",),
        tag="timm",
    ),
    "onnx": Target(
        "model.onnx",
        ("onnx", "onnxscript", "onnxruntime"),
        own_maker,
        _save_onnx,
        _load_onnx,
        _onnx_code,
        lambda maker: ("import onnxruntime",),
        tag="onnx",
        least=1e-4,
    ),
}


def refusal(name: str, encoder: RunEncoder) -> UsageError:
    """That the target has no model with the weights of the encoder, and which targets have."""
    fits = [other for other, target in TARGETS.items() if other != name and _fits(target, encoder)]
    what = f"no model there has the weights of --backbone {encoder.backbone_name}"
    return UsageError(f"--to {name}: {what}; --to {', '.join(fits)} fit{'s' if len(fits) == 1 else ''}")


def _fits(target: Target, encoder: RunEncoder) -> bool:
    try:
        return fitting(target, encoder) is not None
    except (UsageError, RuntimeError, ValueError, TypeError, AssertionError):
        return False


def explained(name: str, error: Exception) -> UsageError:
    """What a library said while it took the encoder."""
    return UsageError(f"--to {name}: {type(error).__name__}: {first_line(error)}")
