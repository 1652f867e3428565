"""The optimizer of a run: one for all parameters, in groups with and without weight decay."""

from typing import Any

import torch
from torch import Tensor, nn

from fastssl.optim import LARS, AdamW, SparseAdam
from fastssl.train.settings import TrainConfig

DEFAULT_LR = {"adamw": 2e-3, "sgd": 0.1, "lars": 0.3}  # at batch 256, scaled linearly with the batch


def is_sparse(method: nn.Module) -> bool:
    """Whether a method's gradients are sparse: its parameters are those of embeddings with ``sparse=True``.

    Raises:
        ValueError: some are and others are not; one optimizer cannot serve both.
    """
    tables = {id(p) for part in method.modules() if getattr(part, "sparse", False) is True for p in part.parameters()}
    others = [name for name, p in method.named_parameters() if p.requires_grad and id(p) not in tables]
    if tables and others:
        both = f"sparse for all parameters or for none, got dense ones for {others[0]}"
        raise ValueError(f"{type(method).__name__}: gradients must be {both}")
    return bool(tables)


def make_optimizer(
    config: TrainConfig, method: nn.Module, parameters: list[Tensor], steady: list[Tensor], lr: float
) -> torch.optim.Optimizer:
    """AdamW, SGD or LARS, with weight decay on matrices and filters only, not on biases and norms.

    Of a method with sparse gradients a step touches the rows that these hold: SparseAdam for AdamW, and SGD without momentum. Decay
    would touch all.

    Returns:
        The optimizer. Its groups are the decayed parameters, the others, and ``steady`` where there are any.
    """
    sparse = is_sparse(method)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.0 if sparse else config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        *([{"params": steady, "weight_decay": 0.0}] if steady else []),
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr, momentum=0.0 if sparse else 0.9, nesterov=not sparse)
    if config.optimizer == "lars":
        return LARS(groups, lr)
    return (SparseAdam if sparse else AdamW)(groups, lr)
