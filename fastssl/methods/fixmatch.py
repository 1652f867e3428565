"""FixMatch (Sohn et al. 2020): what a classifier is sure of in a weak view, it must also see in a strong one.

    q = softmax(classifier(backbone(weak view))), without gradient
    loss = cross-entropy of the labelled weak views + w mean over all rows of [max q >= threshold] -log p(argmax q | strong view)

All images count in the second part, those with a label too.
"""

import torch
from torch import Tensor, nn

from fastssl.checks import check_number

from ._checks import check_batch, check_like_first
from ._classifier import ClassifierMethod, check_labels, check_probability, confident_loss, known_loss


class FixMatch(ClassifierMethod):
    """FixMatch around any encoder: ``FixMatch(backbone, 10)(weak, strong, labels)`` is the loss.

    Sohn et al. 2020, https://arxiv.org/abs/2001.07685, equations 3 and 4. Evaluation has the classifier itself, not an average of
    its weights.

    Args:
        backbone: the encoder, any module from inputs (B, ...) to features (B, feature_dim). It may also return maps, a mapping or a
            tuple: docs/methods.md, Encoders.
        num_classes: number C of classes, at least 2.
        feature_dim: width of the features. By default a probe finds it.
        threshold: probability from which on a class counts as the image's, in [0, 1].
        unlabelled_weight: weight w of the second part, at least 0.

    Raises:
        TypeError: an argument of the wrong type, such as a backbone that is no module.
        ValueError: an argument out of its range, or a backbone whose features no rule covers.

    Examples:
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 8))
        >>> method = FixMatch(backbone, num_classes=3)
        >>> weak, strong = torch.rand(2, 5, 3, 2, 2)
        >>> method(weak, strong, torch.tensor([0, 2, -1, -1, -1])).shape, method.classify(weak).shape
        (torch.Size([]), torch.Size([5, 3]))
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        feature_dim: int | None = None,
        *,
        threshold: float = 0.95,
        unlabelled_weight: float = 1.0,
    ):
        check_probability("FixMatch", threshold=threshold)
        check_number("FixMatch", "unlabelled_weight", unlabelled_weight, 0.0)
        super().__init__(backbone, num_classes, feature_dim)
        self.threshold, self.unlabelled_weight = threshold, unlabelled_weight

    def forward(self, weak: Tensor, strong: Tensor, labels: Tensor) -> Tensor:
        """The loss of two views. A batch without labels has the second part alone.

        Both views pass the encoder as one batch, so that batch norms have statistics of both.

        Args:
            weak, strong: (B, ...) float, a weakly and a strongly changed view of the same B images; B is at least 2.
            labels: (B,) integers, -1 where an image has no label.

        Returns:
            Scalar float32 (float64 for a float64 model).

        Raises:
            TypeError: views of different dtypes or devices, or labels that are no integers.
            ValueError: views of different shapes, a B below 2, or labels of another length or outside of the classes.
        """
        check_batch("FixMatch", 2, weak=weak, strong=strong)
        check_like_first("FixMatch", weak=weak, strong=strong)
        if weak.shape != strong.shape:
            raise ValueError(f"FixMatch: strong must have the shape of weak, {tuple(weak.shape)}, got {tuple(strong.shape)}")
        check_labels("FixMatch", labels, weak, "weak", self.num_classes)
        weak_logits, strong_logits = self.classify(torch.cat([weak, strong])).chunk(2)
        believed = weak_logits.detach().softmax(1)
        unlabelled = confident_loss(strong_logits, believed, believed.argmax(1), self.threshold)
        return known_loss(weak_logits, labels) + self.unlabelled_weight * unlabelled
