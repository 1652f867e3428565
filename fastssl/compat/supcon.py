"""Drop-ins for the SupContrast repository: its ``losses.SupConLoss``, and the ``forward`` of that class alone.

solo-learn's SupCon is another objective: it calls ``simclr_loss_func`` with labels, which ``fastssl.compat.solo`` has.
"""

from torch import Tensor

from fastssl.loss.sup_con import SupConLoss, sup_con

__all__ = ["SupConLoss", "forward"]


def forward(self, features: Tensor, labels: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """The ``forward`` of SupContrast's class, for ``losses.SupConLoss.forward = forward`` or ``fastssl.patch("supcon", losses)``.

    Args:
        self: a module with ``temperature``, ``contrast_mode`` and ``base_temperature``.
        features: (B, V, ...) float32, bfloat16, float16 or float64, of unit length.
        labels: (B,) or (B, 1) of any real dtype; views of samples of equal label are positives.
        mask: (B, B), in place of labels: 1 where sample j is a positive of sample i.

    Returns:
        The mean loss, a scalar, float32 (float64 for float64 input). An anchor without positives counts as 0 (NaN there, in
        older versions).

    Raises:
        TypeError, ValueError: as ``sup_con``.

    Examples:
        >>> from types import SimpleNamespace
        >>> theirs = SimpleNamespace(temperature=0.1, contrast_mode="all", base_temperature=0.07)  # their module, as it is read
        >>> features = torch.nn.functional.normalize(torch.randn(4, 2, 8), dim=2)
        >>> forward(theirs, features, torch.tensor([0, 1, 0, 1])).shape
        torch.Size([])
    """
    return sup_con(
        features,
        labels,
        temperature=self.temperature,
        base_temperature=self.base_temperature,
        mask=mask,
        contrast_mode=self.contrast_mode,
    )
