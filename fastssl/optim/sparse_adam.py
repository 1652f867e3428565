"""Adam on the rows that a sparse gradient holds, in one pass over them."""

from collections.abc import Callable
from typing import Any

import torch

from fastssl.checks import FLOATS, is_whole
from fastssl.ops.sparse_adam import step_rows


class SparseAdam(torch.optim.SparseAdam):
    """Adam on the rows of tables that a step touches, with the arithmetic and the state of ``torch.optim.SparseAdam``.

    Rows that a gradient does not hold stay as they are, and so do their moments. The time of a step follows the touched rows and
    not the table; there is no weight decay. Gradients are sparse, such as those of ``fastssl.functional.word_pairs`` and of
    ``torch.nn.Embedding(sparse=True)``. State dicts go both ways between this optimizer and torch's.

    Args:
        params: Parameters (V, D) or groups of them, float32, bfloat16, float16 or float64. Groups may override lr, betas and eps.
        lr: A number above 0, or a one-element tensor.
        betas: (beta1, beta2), both in [0, 1).
        eps: What is added to the root, above 0.
        maximize: Only False.

    Raises:
        TypeError: A gradient is not sparse, or a parameter is of another dtype.
        ValueError: An argument is out of its range, a parameter is no matrix, or a gradient holds single elements.
        NotImplementedError: ``maximize`` is set.

    Examples:
        >>> from fastssl.optim import SparseAdam
        >>> words = torch.nn.Embedding(1000, 2, sparse=True)
        >>> before = words.weight.detach().clone()
        >>> optimizer = SparseAdam(words.parameters(), lr=0.1)
        >>> words(torch.tensor([7, 3, 7])).sum().backward()
        >>> optimizer.step()
        >>> (words.weight != before).any(1).nonzero().flatten().tolist()
        [3, 7]
    """

    def add_param_group(self, param_group: dict) -> None:
        """As torch's; parameters must be float matrices."""
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"]:
            if p.dtype not in FLOATS:
                raise TypeError(f"SparseAdam: params must be float32, bfloat16, float16 or float64, got {p.dtype}")
            if p.ndim != 2:
                raise ValueError(f"SparseAdam: params must be (V, D), got {tuple(p.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step.

        Args:
            closure: Evaluates the model and returns the loss; it is called before the step.

        Returns:
            What ``closure`` returned, else None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        slots = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        for p, group in slots:
            if group["maximize"]:
                raise NotImplementedError("SparseAdam: maximize is not supported; it must be False, got True")
            if not p.grad.is_sparse:
                raise TypeError("SparseAdam: gradients must be sparse, got a dense one; see the argument sparse of nn.Embedding")
            if p.grad.sparse_dim() != 1:
                raise ValueError(f"SparseAdam: gradients must hold whole rows, one sparse dimension, got {p.grad.sparse_dim()}")
        for p, group in slots:
            state = self.state[p]
            if not state:
                state |= {"step": 0, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            if not is_whole(state["step"]):
                state["step"] = int(state["step"])
            state["step"] += 1
            tables = p, state["exp_avg"], state["exp_avg_sq"]
            step_rows(tables, p.grad, state["step"], float(group["lr"]), group["betas"], group["eps"])
        return loss
