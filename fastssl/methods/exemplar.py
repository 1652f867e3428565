"""Exemplar networks (Dosovitskiy et al. 2014): each image is a class of its own, whose samples are strong augmentations of it.

    logits_j = <w_j, f> + b_j, f = backbone(augmented image i)        loss = logsumexp_j logits_j - logits_i          (eq. 1 and 2)

The classes are the rows of a weight matrix that is learned; the sum runs over all of them, and no (B, N) matrix exists.
``InstDisc`` asks the same question, with a bank of embeddings in place of the weights: there the class of an image is where its
views were, here it is where the gradient has brought its row. The bank needs no optimizer state, and its rows mean something from
the first epoch on.
"""

import torch
from torch import Tensor, nn

from fastssl.checks import check_whole
from fastssl.functional import similarity_lse
from fastssl.loss.parts.dot_products import dot_rows

from ._checks import samples_of
from ._pretext import OneEncoder, check_images


class Exemplar(OneEncoder):
    """Exemplar networks around any encoder: ``Exemplar(backbone, len(dataset))(images, index)`` is the loss.

    Dosovitskiy et al. 2014, https://arxiv.org/abs/1406.6909, equations 1 and 2.

    Args:
        backbone: the encoder, any module from images (B, C, H, W) to features (B, feature_dim). It may also return maps, a mapping
            or a tuple: docs/methods.md, Encoders.
        num_samples: number N of images that are classes, at least 2.
        feature_dim: width of the features. By default a probe finds it.

    The paper's classes are patches with strong edges, 8000 to 32000 of them, with some hundred augmentations of each.

    Raises:
        TypeError: an argument of the wrong type, such as a backbone that is no module.
        ValueError: an argument out of its range, or a backbone whose features no rule covers.

    Examples:
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 8))
        >>> method = Exemplar(backbone, num_samples=20)
        >>> augmented, index = torch.rand(5, 3, 2, 2), torch.tensor([0, 3, 7, 8, 19])
        >>> method(augmented, index).shape, method.answer(augmented, index)[1].tolist()
        (torch.Size([]), [0, 3, 7, 8, 19])
    """

    def __init__(self, backbone: nn.Module, num_samples: int, feature_dim: int | None = None):
        num_samples = check_whole("Exemplar", "num_samples", num_samples, 2)
        super().__init__(backbone, feature_dim)
        self.classifier = nn.Linear(self.feature_dim, num_samples)

    def checked(self, images: Tensor, index: Tensor) -> Tensor:
        """index (B,) as int64, refused where it does not fit images (B, C, H, W) or the classes."""
        check_images("Exemplar", images)
        return samples_of("Exemplar", index, images, self.classifier.out_features)

    @torch.no_grad()
    def answer(self, images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Which image each augmented image is named as, for a score.

        Args:
            images: (B, C, H, W) float.
            index: (B,) integers in [0, num_samples), which samples the images are of.

        Returns:
            Answers and right answers, both (B,) int64.
        """
        index = self.checked(images, index)
        return self.classifier(self.features(images)).argmax(1), index

    def forward(self, images: Tensor, index: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            images: (B, C, H, W) float, one augmentation of each sample.
            index: (B,) integers in [0, num_samples), which samples the images are of.

        Returns:
            Scalar float32.

        Raises:
            TypeError: images that are not floating, or an ``index`` that is no integers.
            ValueError: an ``index`` of another length or, where the host can see it, outside of the classes.
        """
        index = self.checked(images, index)
        weight, bias = self.classifier.weight, self.classifier.bias
        features = self.features(images).to(weight.dtype)
        right = dot_rows(features, weight[index]) + bias[index]
        return (similarity_lse(features, weight, y_bias=bias) - right).mean()
