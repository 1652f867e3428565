"""Noisy student (Xie et al. 2020): a classifier of few labels labels all images, and a student with noise learns from both.

    each round:   p_i = softmax(classifier(backbone(image_i))) of all images, without noise
    each step:    s = classifier(dropout(backbone(view)))
                  loss = cross-entropy of the labelled rows + w mean over rows of [max p_i >= threshold] CE(p_i, s)

Before the first round there are the labels alone. The noise is in the views and in the dropout; the teacher has none. The student
goes on from the teacher's weights, where the paper starts a new one, as large or larger, in each round.
"""

import torch
from torch import Tensor, nn

from fastssl.checks import check_dense, check_float_dtype, check_number, check_whole

from ._checks import check_batch, samples_of
from ._classifier import ClassifierMethod, check_labels, check_probability, confident_loss, known_loss


class NoisyStudent(ClassifierMethod):
    """Noisy student around any encoder: ``NoisyStudent(backbone, 10, num_samples)(images, labels, index)`` is the loss.

    Xie et al. 2020, https://arxiv.org/abs/1911.04252, algorithm 1, with soft pseudo-labels.

    A training loop starts a round, usually after some epochs, with ``start_round(logits of all samples)``. ``pseudo``, float32
    (num_samples, num_classes), has the probabilities that the last round gave, zeros for samples that it had no logits of;
    ``round``, int64 (), counts the rounds. Both are in the state dict.

    Args:
        backbone: the encoder, any module from inputs (B, ...) to features (B, feature_dim). It may also return maps, a mapping or a
            tuple: docs/methods.md, Encoders.
        num_classes: number C of classes, at least 2.
        num_samples: number of training samples; ``index`` counts them.
        feature_dim: width of the features. By default a probe finds it.
        dropout: share of the features that a training step sets to 0, at least 0 and below 1.
        threshold: probability from which on a pseudo-label counts, in [0, 1].
        unlabelled_weight: weight w of the pseudo-labels, at least 0.

    Raises:
        TypeError: an argument of the wrong type, such as a backbone that is no module.
        ValueError: an argument out of its range, or a backbone whose features no rule covers.

    Examples:
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 8))
        >>> method, images = NoisyStudent(backbone, 3, num_samples=20), torch.rand(20, 3, 2, 2)
        >>> method.start_round(method.classify(images))
        >>> method(images[:4], torch.tensor([0, 2, -1, -1]), torch.arange(4)).shape, int(method.round)
        (torch.Size([]), 1)
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        num_samples: int,
        feature_dim: int | None = None,
        *,
        dropout: float = 0.5,
        threshold: float = 0.3,
        unlabelled_weight: float = 1.0,
    ):
        num_samples = check_whole("NoisyStudent", "num_samples", num_samples, 2)
        check_number("NoisyStudent", "dropout", dropout, 0.0, 1.0)
        check_probability("NoisyStudent", threshold=threshold)
        check_number("NoisyStudent", "unlabelled_weight", unlabelled_weight, 0.0)
        super().__init__(backbone, num_classes, feature_dim)
        self.dropout, self.threshold, self.unlabelled_weight = dropout, threshold, unlabelled_weight
        self.pseudo: Tensor
        self.round: Tensor
        self.register_buffer("pseudo", torch.zeros(num_samples, num_classes))
        self.register_buffer("round", torch.zeros((), dtype=torch.int64))

    def forward(self, images: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        """The loss of a view of some samples.

        Args:
            images: (B, ...) float, B at least 2.
            labels: (B,) integers, -1 where a sample has no label.
            index: (B,) integers in [0, num_samples), which samples the images are of.

        Returns:
            Scalar float32 (float64 for a float64 model).

        Raises:
            TypeError: labels or an index that are no integers.
            ValueError: a B below 2, labels or an index of another length or, where the host can see it, outside of their range.
        """
        check_batch("NoisyStudent", 2, images=images)
        check_labels("NoisyStudent", labels, images, "images", self.num_classes)
        index = samples_of("NoisyStudent", index, images, len(self.pseudo))
        features = nn.functional.dropout(self.embed(images), self.dropout, self.training)
        logits = self.classifier(features)
        logits = logits.float() if logits.dtype.itemsize < 4 else logits
        believed = self.pseudo[index].to(logits.dtype)
        return known_loss(logits, labels) + self.unlabelled_weight * confident_loss(logits, believed, believed, self.threshold)

    @torch.no_grad()
    def start_round(self, logits: Tensor, index: Tensor | None = None) -> None:
        """Takes what the classifier says now as the pseudo-labels of the next steps.

        Args:
            logits: (M, num_classes) float, as ``classify`` gives them in evaluation mode.
            index: (M,) integers, which samples they are of; the others have no pseudo-label. By default all in their order.

        Raises:
            TypeError: logits that are not floating, or an index that is no integers.
            ValueError: shapes that do not fit, an index beyond the samples, or logits that are not finite. Nothing changes then.
        """
        op, (count, classes) = "NoisyStudent.start_round", self.pseudo.shape
        check_dense(op, "logits", logits, "a tensor (M, num_classes)")
        check_float_dtype(op, "logits", logits)
        if logits.ndim != 2 or logits.shape[1] != classes or (index is None and len(logits) != count):
            wanted = f"({count if index is None else 'M'}, {classes})"
            raise ValueError(f"{op}: logits must have shape {wanted}, got {tuple(logits.shape)}")
        if not logits.isfinite().all():
            raise ValueError(f"{op}: logits must be finite, got NaN or infinite ones")
        rows = torch.arange(count) if index is None else samples_of(op, index, logits, count)
        self.pseudo.zero_()[rows.to(self.pseudo.device)] = logits.to(self.pseudo).softmax(1)
        self.round.add_(1)
