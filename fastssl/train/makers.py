"""How the libraries that an encoder leaves for make an empty model of its architecture: a call, and code that a person copies."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from fastssl.methods import VisionTransformer
from fastssl.train.backbones import ConvEncoder, head_of, library_module, timm_model, torchvision_options
from fastssl.train.encoders import RunEncoder

TIMM_VIT = "vit_tiny_patch16_224"  # a plain ViT; each size of it is given


@dataclass(frozen=True)
class Maker:
    """Makes a model that takes a state dict.

    Args:
        imports: what ``code`` needs to be imported, a line each.
        code: Python that binds the model to ``model``. ``{more}`` in it stands for further arguments of its call.
        make: (**further arguments) -> the model.
        library: what makes it: "torch", "fastssl", "timm" or "torchvision".
    """

    imports: tuple[str, ...]
    code: str
    make: Callable[..., nn.Module]
    library: str

    def written(self, more: str = "") -> str:
        return self.code.replace("{more}", more)


def call(module: str, name: str, arguments: tuple[Any, ...], options: dict[str, Any], library: str) -> Maker:
    """A maker that calls ``module.name``."""
    words = [*map(repr, arguments), *(f"{key}={value!r}" for key, value in options.items())]
    root, _, rest = module.partition(".")
    imported = f"from {root} import {rest}" if rest else f"import {root}"

    def make(**more: Any) -> nn.Module:
        return getattr(importlib.import_module(module), name)(*arguments, **options, **more)

    return Maker((imported,), f"model = {module.rpartition('.')[2]}.{name}({', '.join(words)}{{more}})", make, library)


def library_of(backbone: nn.Module) -> str:
    """The library whose class a backbone is."""
    return type(backbone).__module__.split(".")[0]


def bare_name(encoder: RunEncoder) -> str:
    """The name of a model in its library: that of ``--backbone`` without ``timm:`` or ``torchvision:``."""
    return encoder.backbone_name.rpartition(":")[2]


def backbone_of(encoder: RunEncoder) -> nn.Module:
    assert encoder.backbone is not None  # refused before
    return encoder.backbone


def own_maker(encoder: RunEncoder) -> Maker | None:
    """Makes the class that the backbone is; the built-in convolutions as layers of torch alone."""
    backbone = backbone_of(encoder)
    if isinstance(backbone, ConvEncoder):
        return conv_maker(backbone, encoder.channels)
    if isinstance(backbone, VisionTransformer):
        shape = vit_shape(backbone)
        options = {"width": shape["embed_dim"], "heads": shape["num_heads"], "channels": shape["in_chans"]}
        options |= {name: shape[name] for name in ("depth", "mlp_ratio", "class_token")}
        return call("fastssl.methods", "VisionTransformer", (shape["img_size"], shape["patch_size"]), options, "fastssl")
    if library_of(backbone) == "torchvision":
        fresh = call(
            "fastssl.train.backbones",
            "build_backbone",
            (encoder.backbone_name, encoder.image_size, encoder.channels),
            {},
            "fastssl",
        )
        return torchvision_maker(encoder) or fresh
    return timm_maker(encoder)


def conv_maker(backbone: ConvEncoder, channels: int) -> Maker:
    layers = [layer for layer in backbone if isinstance(layer, nn.Conv2d)]
    widths, strides = tuple(layer.out_channels for layer in layers), tuple(layer.stride[0] for layer in layers)
    code = f"""layers, before = [], {channels}
for width, stride in zip({widths}, {strides}):
    layers += [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    before = width
model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())"""
    return Maker(("from torch import nn",), code, lambda: ConvEncoder(widths, strides, channels=channels), "torch")


def vit_shape(backbone: VisionTransformer) -> dict[str, Any]:
    """The arguments of timm's ``VisionTransformer`` for the built-in one."""
    embed, block = backbone.patch_embed, cast(Any, backbone.blocks[0])
    height, width = (side * embed.patch_size[0] for side in embed.grid_size)
    return {
        "img_size": height if height == width else (height, width),
        "patch_size": embed.patch_size[0],
        "in_chans": embed.proj.in_channels,
        "embed_dim": backbone.embed_dim,
        "depth": len(backbone.blocks),
        "num_heads": block.attn.heads,
        "mlp_ratio": block.mlp.fc1.out_features / backbone.embed_dim,
        "class_token": backbone.cls_token is not None,
    }


def timm_maker(encoder: RunEncoder) -> Maker | None:
    """A model of timm: the backbone itself, the ViT that the built-in one is, or what another library calls by the same name."""
    backbone, (timm, _) = backbone_of(encoder), library_module("timm")
    if timm is None:
        return None
    if isinstance(backbone, VisionTransformer):
        shape = vit_shape(backbone)
        pooling = {"global_pool": "token" if shape["class_token"] else "avg", "fc_norm": False}
        return call("timm", "create_model", (TIMM_VIT,), {"num_classes": 0, **shape, **pooling}, "timm")
    name = bare_name(encoder)
    if name.split(".")[0] not in timm.list_models():
        return None
    options = timm_model(timm, name, encoder.image_size, encoder.channels, False)[1]
    return call("timm", "create_model", (name,), options, "timm")


def torchvision_maker(encoder: RunEncoder) -> Maker | None:
    """A model of torchvision without its last layer: the backbone itself, or what another library calls by the same name."""
    name, (models, _) = bare_name(encoder), library_module("torchvision")
    if models is None or encoder.channels != 3 or name not in models.list_models(module=models):
        return None
    full = call("torchvision.models", "get_model", (name,), torchvision_options(name, encoder.image_size), "torchvision")
    if (head := head_of(full.make())) is None:
        return None

    def make() -> nn.Module:
        model = full.make()
        setattr(model, head, nn.Identity())
        return model

    return Maker((*full.imports, "from torch import nn"), f"{full.code}\nmodel.{head} = nn.Identity()", make, "torchvision")
