"""Deep InfoMax (Hjelm et al. 2019), its local objective by InfoNCE: the whole picture finds the places of its own maps.

    g_i = global_head(backbone(x_i))        c_il = local_head(layer(x_i))_l        place l of the maps of an inner layer
    loss = - mean over i, l of log exp(<g_i, c_il> / t) / (exp(<g_i, c_il> / t) + sum over j != i, m of exp(<g_i, c_jm> / t))

All places of all other pictures are the negatives of a picture; no tensor of size pictures x pictures x places exists. Left out
are the paper's global objective, its adversarial prior, and its estimators other than InfoNCE (which it found the best).
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from fastssl.functional import info_nce

from ._checks import check_batch, check_flags, check_negatives, check_positive
from ._common import ranks_of
from ._local import LocalMethod


class DIM(LocalMethod):
    """DIM around any encoder with an inner layer of maps: ``DIM(backbone, "layer2")(images)`` is the loss to call ``backward`` on.

    Hjelm et al. 2019, https://arxiv.org/abs/1808.06670, sections 3.1 and 3.2, with the encode-and-dot-product of its appendix.

    Args:
        backbone: the encoder, any module from images (N, C, H, W) to features (N, feature_dim). It may also return maps, a mapping
            or a tuple: docs/methods.md, Encoders.
        layer: name of a layer inside it, as ``backbone.named_modules()`` has it, that gives maps (N, D', h, w).
        feature_dim: width of the features. By default a probe finds it.
        projection_dim: width D in which pictures and places are compared.
        temperature: above 0.
        normalize: whether cosines are compared. False, with temperature 1, is the paper's dot product.
        negatives: with several processes, "global" compares the rows of all of them, "local" those of each process alone
            (docs/methods.md, Several processes).

    Raises:
        TypeError: an argument of the wrong type, such as a backbone that is no module.
        ValueError: an argument out of its range, a layer that is not there or gives no maps, or a backbone whose features no rule
            covers.

    Examples:
        >>> backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 4, 4), torch.nn.ReLU(), torch.nn.Conv2d(8, 6, 2))
        >>> method = DIM(backbone, "1", projection_dim=4)
        >>> images = torch.rand(5, 3, 16, 16)
        >>> method(images).shape, method.embed(images).shape
        (torch.Size([]), torch.Size([5, 6]))
    """

    def __init__(
        self,
        backbone: nn.Module,
        layer: str,
        feature_dim: int | None = None,
        *,
        projection_dim: int = 128,
        temperature: float = 0.1,
        normalize: bool = True,
        negatives: str = "global",
    ):
        check_positive("DIM", temperature=temperature)
        check_flags("DIM", normalize=normalize)
        check_negatives("DIM", negatives)
        super().__init__(backbone, (layer,), "layer", feature_dim, projection_dim)
        self.temperature, self.normalize, self.negatives = temperature, normalize, negatives

    def forward(self, images: Tensor) -> Tensor:
        """The loss of a batch of images.

        Args:
            images: (N, ...), N at least 2, what the backbone takes.

        Returns:
            Scalar float32, the mean over the images and their places.

        Raises:
            TypeError, ValueError: images that the backbone does not take, or fewer than 2.
        """
        check_batch("DIM", 2, images=images)
        whole, (places,) = self.project(images)
        own = torch.arange(places.shape[0] * places.shape[1], device=places.device).view(places.shape[:2])
        how: dict[str, Any] = {"temperature": self.temperature, "normalize": self.normalize, "group": ranks_of(self)}
        return cast(Tensor, info_nce(whole, places.flatten(0, 1), target=own, **how))
