"""What MAE, SimMIM, Inpainting, BERT and the built-in transformer refuse, and what they say."""

import pytest
import torch
from torch import nn

from fastssl.methods import MAE, Inpainting, SimMIM, VisionTransformer
from tests.methods.test_masked import NO_TIMM, Maps, bert, built, images, mae, simmim, words
from tests.support.compat_nets import library


class Other(VisionTransformer):
    """The built-in transformer with one attribute changed."""

    def __init__(self, name, value):
        super().__init__((8, 12), 2, 16, 1, 2)
        setattr(self, name, value)


def overlapping() -> nn.Module:
    model = built("vit")
    model.patch_embed.proj = nn.Conv2d(3, 16, 3, 2, 1)
    return model


BAD = [
    (
        lambda: MAE(nn.Conv2d(3, 8, 3)),
        ValueError,
        "MAE: backbone must be a vision transformer .* got Conv2d: it has no patch_embed",
    ),
    (lambda: MAE(overlapping()), ValueError, "one convolution whose stride is its kernel"),
    (lambda: SimMIM(Other("num_prefix_tokens", 1)), ValueError, "SimMIM: backbone .* num_prefix_tokens is 1"),
    (lambda: MAE(Other("extra", nn.Linear(2, 2))), ValueError, "more than the usual parts: extra"),
    (lambda: MAE(Other("rope", nn.Identity())), ValueError, "positions of all tokens"),
    (lambda: MAE(Other("blocks", nn.Identity())), ValueError, "blocks must be"),
    (lambda: MAE(Other("pos_embed", nn.Parameter(torch.zeros(1, 7, 16)))), ValueError, "pos_embed must have a row"),
    (lambda: mae(mask_ratio=0.99), ValueError, "MAE: mask_ratio must remove some of 24 patches and keep some, got 0.99"),
    (lambda: mae(mask_ratio=0.0), ValueError, "MAE: mask_ratio must remove some"),
    (lambda: mae(mask_ratio=1.5), ValueError, "mask_ratio"),
    (lambda: mae(pixel_std=0.0), ValueError, "MAE: pixel_std must be above 0"),
    (lambda: mae(decoder_dim=9), ValueError, "multiple"),
    (lambda: mae()(images()[:, :, :4]), ValueError, r"MAE: images must have the shape of the backbone, \(N, 3, 8, 12\)"),
    (lambda: mae()(images()[:0]), ValueError, "MAE: images"),
    (lambda: mae()([images()]), TypeError, "MAE: images must be a tensor"),
    (lambda: mae()((images() * 255).byte()), TypeError, "MAE: images must be floating"),
    (lambda: mae()(images(), noise=torch.rand(5, 23)), ValueError, r"noise must have shape \(5, 24\)"),
    (lambda: mae().embed(images()[:, :2]), ValueError, "MAE: images"),
    (lambda: simmim(mask_size=3), ValueError, "SimMIM: mask_size must be a multiple"),
    (lambda: simmim(mask_size=0), ValueError, "SimMIM: mask_size must be a multiple"),
    (lambda: simmim(mask_size=8), ValueError, "SimMIM: mask_size 8 must divide"),
    (lambda: simmim(mask_ratio=0.9), ValueError, "SimMIM: mask_ratio must remove some"),
    (lambda: simmim()(images(), noise=torch.rand(5, 24)), ValueError, "noise must have shape"),
    (lambda: Inpainting(nn.Flatten(), 8, mask_size=2), ValueError, "Inpainting: backbone .* without forward_features"),
    (
        lambda: Inpainting(VisionTransformer(8, 2, 16, 1, 2), 8, mask_size=2),
        ValueError,
        "Inpainting: backbone .* VisionTransformer, whose",
    ),
    (lambda: Inpainting(Maps(), 12, mask_size=5), ValueError, "Inpainting: mask_size must divide image_size 12"),
    (lambda: Inpainting(Maps(), 8, mask_size=2, mask_ratio=0.0), ValueError, "Inpainting: mask_ratio"),
    (lambda: Inpainting(Maps(), 8, corruption="holes"), ValueError, "Inpainting: corruption"),
    (lambda: Inpainting(Maps(), 8, corruption="noise", sigma=0.0), ValueError, "Inpainting: sigma"),
    (lambda: Inpainting(Maps(), 8, mask_size=2)(torch.rand(2, 3, 16, 16)), ValueError, r"Inpainting: images .* \(N, 3, 8, 8\)"),
    (lambda: Inpainting(Maps(), 8, mask_size=2)(None), TypeError, "Inpainting: images must be a tensor"),
    (
        lambda: Inpainting(Maps(), 8, corruption="noise")(torch.rand(2, 3, 8, 8), noise=torch.rand(2, 4)),
        ValueError,
        r"Inpainting: noise must have shape \(2, 3, 8, 8\)",
    ),
    (lambda: bert(mask_id=50), ValueError, r"BERT: mask_id must be in \[0, 50\)"),
    (lambda: bert(special_ids=(-1,)), ValueError, "BERT: special_ids"),
    (lambda: bert(probability=0.0), ValueError, "BERT: probability"),
    (lambda: bert()(words().float()), TypeError, "BERT: input_ids must be int64"),
    (lambda: bert()(words().repeat(1, 2)), ValueError, "BERT: input_ids must have shape .* L from 1 to 12"),
    (lambda: bert()(words() + 40), ValueError, r"BERT: input_ids must be in \[0, 50\)"),
    (lambda: bert()(words(), torch.ones(6, 9)), ValueError, "BERT: attention_mask"),
    (lambda: VisionTransformer(30, 4), ValueError, "VisionTransformer: image_size"),
    (lambda: VisionTransformer(32, 4, positions="none"), ValueError, "VisionTransformer: positions"),
    (lambda: VisionTransformer(32, 4, 130, heads=4), ValueError, "multiple of heads"),
]


@pytest.mark.parametrize("call, error, said", BAD)
def test_bad_input_is_refused_with_a_message(call, error, said):
    with pytest.raises(error, match=said):
        call()


OTHER_KINDS = {
    "resnet18": "has no patch_embed",
    "vit_small_r26_s32_224": "one convolution",
    "eva02_tiny_patch14_224": "positions of all tokens",
    "deit_tiny_distilled_patch16_224": "more than the usual parts: dist_token",
    "cait_xxs24_224": "blocks_token_only",
}


@NO_TIMM
@pytest.mark.parametrize("name", OTHER_KINDS)
def test_timm_models_that_cannot_work_are_refused(name):
    with torch.device("meta"):
        model = library("timm").create_model(name, num_classes=0)
    with pytest.raises(ValueError, match=OTHER_KINDS[name]):
        MAE(model)
