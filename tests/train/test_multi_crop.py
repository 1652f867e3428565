"""Multi-crop augmentation, transformers that take crops of two sizes, and what their class token looks at."""

import pytest
import torch

from fastssl.methods import VisionTransformer
from tests.support.training import needs_train

pytestmark = [needs_train, pytest.mark.usefixtures("one_thread")]


def test_large_and_small_crops_keep_their_shares_of_the_image():
    """Of an image whose colours are its coordinates: the extent of a crop is the difference of the largest and the smallest."""
    from fastssl.train.multi_crop import MultiCrop

    side = 64
    across = torch.linspace(0, 1, side).expand(side, side)
    image = torch.stack([across, across.T, torch.zeros(side, side)])[None].expand(200, -1, -1, -1)
    how = {"global_scale": (0.5, 0.9), "local_scale": (0.1, 0.3), "strength": 0.0, "mirror": False, "colour": False}
    large, small = MultiCrop(32, 16, local_crops=3, solarize=0.0, **how)(image)
    assert [crop.shape for crop in large] == [(200, 3, 32, 32)] * 2 and [crop.shape for crop in small] == [(200, 3, 16, 16)] * 3
    for crops, low, high in ((large, 0.5, 0.9), (small, 0.1, 0.3)):
        rows = torch.cat(crops).flatten(2)
        extent = (rows.amax(2) - rows.amin(2))[:, :2].prod(1)
        assert low - 0.08 < extent.min() < low + 0.1 and high - 0.1 < extent.max() < high + 0.08
        assert len(rows.unique(dim=0)) > 0.95 * len(rows)  # few crops of whole pixels are the same
    assert MultiCrop(32, 16, local_crops=0)(image)[1] == []


def test_only_the_last_large_crop_is_inverted_and_only_crops_that_bear_it_are_blurred():
    from fastssl.train.multi_crop import MultiCrop

    plain = {"strength": 0.0, "mirror": False, "colour": False, "local_crops": 1}
    white = torch.full((60, 3, 8, 8), 0.9)
    (first, last), (small,) = MultiCrop(8, 8, solarize=0.5, **plain)(white)
    assert first.min() > 0.89 and small.min() > 0.89
    inverted = last.mean((1, 2, 3)) < 0.2
    assert 10 < inverted.sum() < 50 and last[~inverted].min() > 0.89
    kinds = [[type(step).__name__ for step in views] for views in (*MultiCrop(64, 32).large, MultiCrop(64, 32).small)]
    assert ["RandomGaussianBlur" in steps for steps in kinds] == [True, True, False]
    assert ["RandomSolarize" in steps for steps in kinds] == [False, True, False]


@pytest.mark.parametrize("class_token", [False, True])
def test_a_transformer_takes_small_crops_as_timm_does(class_token):
    from benchmarks.peers import ready_torchvision

    ready_torchvision()
    timm = pytest.importorskip("timm")
    ours = VisionTransformer(32, 4, 16, 2, 2, class_token=class_token, dynamic_img_size=True)
    size = {"img_size": 32, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 0}
    pool = {"class_token": class_token, "global_pool": "token" if class_token else "avg", "fc_norm": False}
    theirs = timm.models.VisionTransformer(dynamic_img_size=True, **size, **pool)
    theirs.load_state_dict(ours.state_dict())
    for shape in ((32, 32), (16, 16), (20, 12), (40, 32)):
        images = torch.rand(3, 3, *shape)
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.forward_features(images), theirs.forward_features(images), rtol=1e-4, atol=1e-5)
    ours(torch.rand(2, 3, 16, 16))[:, 0].sum().backward()
    assert ours.pos_embed.grad.abs().sum() > 0
    for shape in ((3, 18, 16), (3, 2, 16), (1, 16, 16)):
        with pytest.raises(ValueError, match="VisionTransformer: images must have the shape"):
            ours(torch.rand(2, *shape))
    with pytest.raises(ValueError, match="VisionTransformer: images must have the shape"):
        VisionTransformer(32, 4, 16, 1, 2)(torch.rand(2, 3, 16, 16))
