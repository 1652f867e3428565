"""Odd arguments for every method: served, or refused by a message with the method and the argument, and nothing has moved."""

import inspect
import math
import random

import pytest
import torch
from torch import nn

from fastssl import methods
from fastssl.methods import CLIP, CMC, CPC, MAE, Inpainting, SigLIP, SimCSE, SimMIM, VisionTransformer
from tests.methods.test_masked import Maps
from tests.support.formulas import tiny

pytestmark = pytest.mark.usefixtures("one_thread")

TRIES = 60  # of the constructor, and of a call
ODD = (None, "x", b"y", 0, -1, 2, 3.5, math.nan, math.inf, True, 10**400, [1], (2, 3), {}, nn.Identity, nn.Identity(), tiny(5, 7))
ODD += (
    torch.tensor(0.5),
    torch.tensor([1.0, 2.0]),
    torch.tensor(math.nan),
    torch.float32,
    lambda x: x,
    torch.rand(2, device="meta"),
)


class Text(nn.Module):
    """Tokens (B, L) -> (B, 8); with a mask the states (B, L, 8)."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(30, 8)

    def forward(self, input_ids, attention_mask=None):
        hidden = self.embedding(input_ids)
        return hidden.mean(1) if attention_mask is None else hidden


class AnySize(nn.Conv2d):
    """Images (B, 3, H, W) -> (B, 8), whatever H and W are."""

    def __init__(self):
        super().__init__(3, 8, 3, padding=1)

    def forward(self, images):
        return super().forward(images).mean((2, 3))


class MapsOf(Maps):
    """Images (N, C, S, S) -> maps (N, 6, S / 4, S / 4), features (N, 6)."""

    def __init__(self, channels: int):
        super().__init__()
        self.convolution = nn.Conv2d(channels, 6, 4, 4)


class Convolution(nn.Module):
    """Images (B, 3, H, W) -> (B, 8), by a layer that gives maps."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 2, 2)

    def forward(self, images):
        return self.convolution(images).mean((2, 3))


def words() -> methods.BERT:
    return methods.BERT(50, mask_id=49, width=8, depth=1, heads=2, length=16)


POSITIONAL = ("CMC", "LeJEPA", "MultiFormat")
TWO_VIEWS = ("SimCLR", "SupCon", "NNCLR", "MoCo", "MoCoV3", "BYOL", "SimSiam", "MeanTeacher", "InstDisc", "COLA")
TWO_VIEWS += ("BarlowTwins", "VICReg", "DeepCluster", "EntropyMinimization", "FixMatch", "NoisyStudent", "TrackTriplets")
MADE = {name: (getattr(methods, name), {"backbone": tiny}) for name in TWO_VIEWS} | {
    "CMC": (CMC, {"backbones": lambda: [tiny(), tiny()]}),
    "CPC": (CPC, {"backbone": tiny}),
    "MultiFormat": (methods.MultiFormat, {"wave_encoder": tiny, "spectrogram_encoder": tiny}),
    "AudioMAE": (
        methods.AudioMAE,
        {"backbone": lambda: VisionTransformer(8, 4, 16, 1, 2), "front_end": nn.Identity, "mask_ratio": lambda: 0.5},
    ),
    "LogMel": (methods.LogMel, {}),
    "CLIP": (CLIP, {"image_encoder": tiny, "text_encoder": Text}),
    "SigLIP": (SigLIP, {"image_encoder": tiny, "text_encoder": Text}),
    "SimCSE": (SimCSE, {"encoder": Text, "hidden_dim": lambda: 8}),
    "MAE": (MAE, {"backbone": lambda: VisionTransformer(8, 4, 16, 1, 2)}),
    "LeJEPA": (methods.LeJEPA, {"backbone": tiny}),
    "IJEPA": (methods.IJEPA, {"backbone": lambda: VisionTransformer(8, 2, 16, 1, 2)}),
    "SimMIM": (SimMIM, {"backbone": lambda: VisionTransformer(8, 4, 16, 1, 2)}),
    "Inpainting": (Inpainting, {"backbone": Maps}),
    "RotNet": (methods.RotNet, {"backbone": tiny}),
    "DIM": (methods.DIM, {"backbone": Convolution, "layer": lambda: "convolution"}),
    "AMDIM": (methods.AMDIM, {"backbone": Convolution, "layers": lambda: ("convolution",)}),
    "SplitBrain": (methods.SplitBrain, {"of_lightness": lambda: MapsOf(1), "of_colour": lambda: MapsOf(2)}),
    "ImageGPT": (methods.ImageGPT, {}),
    "Colorization": (methods.Colorization, {"backbone": Maps, "channels": lambda: 3}),
    "Exemplar": (methods.Exemplar, {"backbone": tiny}),
    "RelativePosition": (methods.RelativePosition, {"backbone": AnySize, "patch_size": lambda: 2}),
    "Jigsaw": (methods.Jigsaw, {"backbone": AnySize}),
    "PIRL": (methods.PIRL, {"backbone": AnySize}),
    "DINO": (methods.DINO, {"backbone": AnySize}),
    "IBOT": (
        methods.IBOT,
        {"backbone": lambda: VisionTransformer(8, 4, 16, 1, 2, dynamic_img_size=True), "out_dim": lambda: 8},
    ),
    "SwAV": (methods.SwAV, {"backbone": AnySize}),
    "FrameOrder": (methods.FrameOrder, {"backbone": tiny}),
    "TimeContrastive": (methods.TimeContrastive, {"backbone": tiny}),
    "NextFrame": (methods.NextFrame, {"backbone": Maps}),
    "ColorTracking": (
        methods.ColorTracking,
        {"backbone": Maps, "colours": lambda: torch.tensor([[0.0, 0.0], [40.0, 20.0]]), "channels": lambda: 3},
    ),
    "Word2Vec": (methods.Word2Vec, {"counts": lambda: torch.ones(50)}),
    "BERT": (methods.BERT, {"vocab_size": lambda: 50, "mask_id": lambda: 49}),
    "NextSentence": (methods.NextSentence, {"encoder": words}),
    "SentenceOrder": (methods.SentenceOrder, {"encoder": words}),
    "SkipThought": (methods.SkipThought, {"encoder": words}),
    "QuickThoughts": (methods.QuickThoughts, {"encoder": words}),
    "GPT": (methods.GPT, {"vocab_size": lambda: 50}),
    "T5": (methods.T5, {"vocab_size": lambda: 50, "eos_id": lambda: 1}),
    "VisionTransformer": (VisionTransformer, {}),
}
SMALL = {
    "num_samples": 9,
    "num_permutations": 6,
    "num_classes": 4,
    "projection_dim": 6,
    "queue_size": 16,
    "decoder_dim": 8,
    "decoder_depth": 1,
    "decoder_heads": 2,
    "mask_size": 4,
    "num_clusters": 3,
    "predictor_dim": 8,
    "predictor_depth": 1,
    "predictor_heads": 2,
    "slices": 8,
    "image_size": 8,
    "width": 16,
    "depth": 1,
    "heads": 2,
    "out_dim": 8,
    "bottleneck_dim": 4,
    "prototypes": 6,
}
VIEW, IMAGE, TOKENS = torch.rand(4, 3, 4, 4), torch.rand(4, 3, 8, 8), torch.randint(1, 29, (4, 5))
GIVEN = {
    "view0": VIEW,
    "view1": VIEW.flip(3),
    "weak": VIEW,
    "strong": VIEW.flip(3),
    "labels": torch.arange(4) % 2,
    "index": torch.arange(4),
    "global_crops": [IMAGE, IMAGE.flip(3)],
    "local_crops": [VIEW],
    "x": torch.rand(4, 5, 3, 4, 4),
    "clips": torch.rand(4, 6, 3, 4, 4),
    "tokens": TOKENS,
    "input_ids": TOKENS,
    "first": TOKENS,
    "second": TOKENS.flip(0),
    "attention_mask": torch.ones_like(TOKENS),
}
OPTIONAL = {"noise": torch.rand(4, 4), "ids": torch.arange(4), "image_id": torch.arange(4), "text_id": torch.arange(4)}
CHANGES = (
    lambda x: x.double(),
    lambda x: x.half(),
    lambda x: (x * 255).to(torch.uint8),
    lambda x: x.bool(),
    lambda x: x.long(),
    lambda x: x.to(torch.complex64),
    lambda x: x[:1],
    lambda x: x[:0],
    lambda x: x[:3],
    lambda x: x[0],
    lambda x: x[..., None],
    lambda x: x[:, :1] if x.ndim > 1 else x[None],
    lambda x: x.transpose(0, -1),
    lambda x: x.repeat(3, *[1] * (x.ndim - 1)),
    lambda x: x[:1].expand(x.shape),
    lambda x: x.to_sparse(),
    lambda x: x * math.nan,
    lambda x: x - 100,
    lambda x: x + 100,
    lambda x: x.numpy(),
    lambda x: [x],
)


LARGE = (
    "MAE",
    "SimMIM",
    "IJEPA",
    "Inpainting",
    "Colorization",
    "SplitBrain",
    "ImageGPT",
    "VisionTransformer",
    "RelativePosition",
    "Jigsaw",
    "PIRL",
)


def call_of(name: str, method: nn.Module) -> dict:
    images = IMAGE if name in LARGE else VIEW
    if name in POSITIONAL:
        return {"view0": VIEW, "view1": VIEW.flip(3)}
    clips = torch.rand(4, 6, 3, 8, 8) if name in ("NextFrame", "ColorTracking") else GIVEN["clips"]
    every = GIVEN | OPTIONAL | {"clips": clips, "images": images, "generator": torch.Generator().manual_seed(0), "seed": 3}
    if name in ("AudioMAE", "LogMel"):
        every["waveforms"] = IMAGE if name == "AudioMAE" else torch.rand(4, 800)
    names = [key for key in inspect.signature(method.forward).parameters if key in every]
    return {key: every[key] for key in names if key not in ("seed", "attention_mask") or name == "SimCSE"}


def serve(name: str, argument: str, call, method: nn.Module | None = None):
    """``call()``, or None where it was refused as it should be."""
    before = {} if method is None else {key: value.clone() for key, value in method.state_dict().items()}
    try:
        return call()
    except (TypeError, ValueError, NotImplementedError) as error:
        said = str(error)
        assert said.startswith(f"{name}: ") and argument in said, f"{argument}: {said}"
    state = {} if method is None else method.state_dict()
    changed = [key for key, value in before.items() if not torch.equal(value.nan_to_num(), state[key].nan_to_num())]
    assert not changed, (argument, changed)


@pytest.mark.parametrize("name", MADE)
def test_odd_arguments(name):
    kind, made = MADE[name]
    rng = random.Random(0)
    parameters = inspect.signature(kind).parameters
    usual = {key: value for key, value in SMALL.items() if key in parameters and not (name == "SimMIM" and key == "image_size")}

    def arguments() -> dict:
        return usual | {key: make() for key, make in made.items()}

    for _ in range(TRIES):
        argument, odd = rng.choice(list(parameters)), rng.choice(ODD)
        words = argument.replace("vocab_size", "must be")  # or an id beyond it is what is wrong
        serve(name, words, lambda argument=argument, odd=odd: kind(**arguments() | {argument: odd}))
    method = kind(**arguments())
    if name == "MoCo":
        method.bn_splits = 2
    if name == "DeepCluster":
        method.take_round(torch.arange(9) % 3, 0)
    for _ in range(TRIES):
        given = call_of(name, method)
        argument = rng.choice(list(given))
        given.pop("generator" if argument == "noise" else "noise", None)
        fits = isinstance(given[argument], torch.Tensor) and rng.random() < 0.8
        given[argument] = rng.choice(CHANGES)(given[argument]) if fits else rng.choice(ODD)
        words = {"view0": "view", "view1": "view", "x": "sequences", "images": "images"}.get(argument, argument)
        words = "images" if (name, argument) == ("AudioMAE", "waveforms") else words  # the spectrograms
        method.train(rng.random() < 0.5)
        positional = list(given.values()) if name in POSITIONAL else []
        serve(name, words, lambda p=positional, g=given: method(*p, **({} if p else g)), method)
