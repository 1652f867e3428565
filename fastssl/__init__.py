"""fastssl: fused kernels for self-supervised learning. Importing it compiles nothing and touches no GPU."""

from . import functional, graphs, loss, masking, methods, momentum, optim
from ._version import __version__
from .functional import *  # noqa: F403
from .functional import __all__ as _functions
from .loading import load
from .loss import LocalRowsWarning
from .momentum.loss_bank import LossBank as _LossBank
from .ops import _flops  # noqa: F401
from .patch import patch

__all__ = ["LocalRowsWarning", "__version__", *_functions]
__all__ += ["functional", "graphs", "load", "loss", "masking", "methods", "momentum", "optim", "patch"]

loss.NTXentLoss.make_bank = _LossBank  # here, because a loss imports no state
