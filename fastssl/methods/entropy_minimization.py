"""Entropy minimisation (Grandvalet and Bengio 2004): a classifier of few labels that is to be sure of every image.

    p = softmax(classifier(backbone(image)))
    loss = cross-entropy of the labelled rows + w mean over all rows of -sum_c p_c log p_c

The boundary between the classes then runs where there are few images. The paper leaves the labelled rows out of the mean, of
which a classifier that has learned them is sure anyway.
"""

import torch
from torch import Tensor, nn

from fastssl.checks import check_number

from ._checks import check_batch
from ._classifier import ClassifierMethod, check_labels, known_loss


class EntropyMinimization(ClassifierMethod):
    """Entropy minimisation around any encoder: ``EntropyMinimization(backbone, 10)(images, labels)`` is the loss.

    Grandvalet and Bengio 2004, https://papers.nips.cc/paper/2740-semi-supervised-learning-by-entropy-minimization, equation 6.

    Args:
        backbone: the encoder, any module from inputs (B, ...) to features (B, feature_dim). It may also return maps, a mapping or a
            tuple: docs/methods.md, Encoders.
        num_classes: number C of classes, at least 2.
        feature_dim: width of the features. By default a probe finds it.
        entropy_weight: weight w of the mean entropy, at least 0. Where it is large, all images get one class.

    Raises:
        TypeError: an argument of the wrong type, such as a backbone that is no module.
        ValueError: an argument out of its range, or a backbone whose features no rule covers.

    Examples:
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 8))
        >>> method, images = EntropyMinimization(backbone, num_classes=3), torch.rand(5, 3, 2, 2)
        >>> method(images, torch.tensor([0, 2, -1, -1, -1])).shape, method.classify(images).shape
        (torch.Size([]), torch.Size([5, 3]))
    """

    def __init__(self, backbone: nn.Module, num_classes: int, feature_dim: int | None = None, *, entropy_weight: float = 0.1):
        check_number("EntropyMinimization", "entropy_weight", entropy_weight, 0.0)
        super().__init__(backbone, num_classes, feature_dim)
        self.entropy_weight = entropy_weight

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch. A batch without labels has the entropy alone.

        Args:
            images: (B, ...) float, B at least 2.
            labels: (B,) integers, -1 where an image has no label.

        Returns:
            Scalar float32 (float64 for a float64 model).

        Raises:
            TypeError: labels that are no integers.
            ValueError: a B below 2, or labels of another length or outside of the classes.
        """
        check_batch("EntropyMinimization", 2, images=images)
        check_labels("EntropyMinimization", labels, images, "images", self.num_classes)
        logits = self.classify(images)
        entropy = torch.special.entr(logits.softmax(1)).sum(1).mean()
        return known_loss(logits, labels) + self.entropy_weight * entropy
