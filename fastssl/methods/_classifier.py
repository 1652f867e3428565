"""What the methods of few labels share: a linear classifier of the features, and the loss of the labels that are known."""

from torch import Tensor, nn

from fastssl.checks import INTEGERS, check_number, check_vector, check_whole, readable

from ._common import PlainMethod


def check_labels(name: str, labels: Tensor, inputs: Tensor, argument: str, num_classes: int) -> None:
    """Refuses what are no (B,) integers from -1, no label, to ``num_classes`` - 1; ``argument`` is what ``inputs`` are called."""
    check_vector(name, "labels", labels, len(inputs), INTEGERS, argument, inputs)
    if readable(labels) and not -1 <= int(labels.min()) <= int(labels.max()) < num_classes:
        bounds = f"{int(labels.min())} to {int(labels.max())}"
        raise ValueError(f"{name}: labels must lie in -1 to {num_classes - 1} (num_classes), got {bounds}")


def known_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """logits (B, C), labels (B,) -> the mean cross-entropy of the rows whose label is not -1; 0 where there is none."""
    known = (labels >= 0).sum().clamp_min(1)
    return nn.functional.cross_entropy(logits, labels.long(), ignore_index=-1, reduction="sum") / known


def confident_loss(logits: Tensor, believed: Tensor, target: Tensor, threshold: float) -> Tensor:
    """The mean over B rows of their cross-entropy, 0 for those of which no class is believed with at least ``threshold``.

    Args:
        logits: (B, C) of the student.
        believed: probabilities (B, C) of the teacher.
        target: what the teacher says for the cross-entropy: classes (B,) int64 or probabilities (B, C).
        threshold: in [0, 1].
    """
    trusted = (believed.amax(1) >= threshold).to(logits.dtype)
    return (trusted * nn.functional.cross_entropy(logits, target, reduction="none")).mean()


def check_probability(name: str, **values: float) -> None:
    """Refuses what is no number in [0, 1]."""
    for argument, value in values.items():
        check_number(name, argument, value)
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: {argument} must be in [0, 1], a probability, got {value}")


class ClassifierMethod(PlainMethod):
    """A ``PlainMethod`` with a linear classifier of its features."""

    def __init__(self, backbone: nn.Module, num_classes: int, feature_dim: int | None):
        num_classes = check_whole(type(self).__name__, "num_classes", num_classes, 2)
        super().__init__(backbone, feature_dim)
        self.num_classes = num_classes
        self.classifier = nn.Linear(self.feature_dim, num_classes)

    def classify(self, images: Tensor) -> Tensor:
        """The classifier's scores.

        Args:
            images: (B, ...), what the backbone takes.

        Returns:
            Logits (B, num_classes) float32, or float64 of a float64 model.
        """
        logits = self.classifier(self.embed(images))
        return logits.float() if logits.dtype.itemsize < 4 else logits
