"""Drop-ins for the MoCo v3 repository (``moco/builder.py``): two methods of its class ``MoCo``, to be set on the class.

    contrastive_loss(q, k) = 2 T mean_i -log softmax_j(<q_i, k_j> / T)_i        q of this process, k of all, both at unit length

    MoCo.contrastive_loss = contrastive_loss                        fastssl.patch("mocov3", MoCo)
    MoCo._update_momentum_encoder = update_momentum_encoder

``fastssl.functional.moco_v3_loss`` with ``group=`` is the same loss as a function of q and k.
"""

from torch import Tensor

from ._common import average_parameters, check_share
from .solo import of_own_key

__all__ = ["contrastive_loss", "update_momentum_encoder"]


def contrastive_loss(self, q: Tensor, k: Tensor) -> Tensor:
    """The loss of one direction; MoCo v3 adds ``contrastive_loss(q1, k2)`` and ``contrastive_loss(q2, k1)``.

    Args:
        self: a module with the temperature ``T``.
        q: (N, D), the predictions, brought to unit length here. Unequally many rows in the processes are allowed, unlike there.
        k: (N, D), the keys of the momentum encoder, brought to unit length here. They get no gradient in several processes, as
            there; in one process, where the repository does not run, they get none either.

    Returns:
        The mean loss over this process's rows, a scalar, float32 (float64 for float64 input). No N x M logits are made, and
        without a process group M = N.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device or temperature.

    Examples:
        >>> from types import SimpleNamespace
        >>> theirs = SimpleNamespace(T=0.2)  # their module, as it is read
        >>> q, k = torch.randn(4, 8, requires_grad=True), torch.randn(4, 8)
        >>> contrastive_loss(theirs, q, k).backward()
        >>> q.grad.shape
        torch.Size([4, 8])
    """
    return 2.0 * self.T * of_own_key("contrastive_loss", q, k.detach(), self.T, "q", "k", False)


def update_momentum_encoder(self, m: float) -> None:
    """momentum_encoder <- m momentum_encoder + (1 - m) base_encoder for all parameters, in place, in one launch; buffers stay.

    Args:
        self: a module with ``base_encoder`` and ``momentum_encoder``.
        m: the share that is kept, in [0, 1].

    Raises:
        TypeError, ValueError: the encoders do not belong together, or ``m`` is out of range; nothing is changed then.

    Examples:
        >>> from types import SimpleNamespace
        >>> theirs = SimpleNamespace(base_encoder=torch.nn.Linear(4, 2), momentum_encoder=torch.nn.Linear(4, 2))
        >>> update_momentum_encoder(theirs, 0.0)
        >>> torch.equal(theirs.momentum_encoder.weight, theirs.base_encoder.weight)
        True
    """
    op = "update_momentum_encoder"
    check_share(op, "m", m)
    average_parameters(op, ("base_encoder", "momentum_encoder"), self.base_encoder, self.momentum_encoder, m)
