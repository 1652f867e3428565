"""Error against error: a kernel may be at most twice as wrong as eager PyTorch in the same dtype.

    ||ours - f64|| <= 2 ||eager - f64|| + atol ||f64||            and nothing is NaN where f64 is not

A result that is the difference of larger terms cannot be better than they are: where the caller knows their ``size``, their own
rounding is added. A truth that is zero up to rounding is compared absolutely: inputs and weights of the tests are of size 1, so a
norm below one unit of float32 at 1 is what is left of terms that cancelled, two kinds of rounding noise.
"""

import torch
from torch import Tensor

#: norms below this are the rounding noise of terms of size 1.
NOISE = 2.0**-23
#: floor of the rule, relative to the norm of the truth: a few units in the last place of what is stored.
FLOOR = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def relative_error(got: Tensor, truth: Tensor) -> float:
    """||got - truth|| / ||truth|| over the finite truth; infinite values must agree exactly."""
    got, truth = got.detach().double().flatten(), truth.detach().double().flatten()
    finite = truth.isfinite()
    if not torch.equal(got[~finite], truth[~finite]):
        return float("inf")
    difference = (got - truth)[finite].norm()
    size = truth[finite].norm()
    return float("inf") if difference.isnan() else float(difference / size) if size > NOISE else float(difference)


def assert_no_worse(name: str, got: Tensor, eager: Tensor, truth: Tensor, dtype: torch.dtype, size: float = 0.0) -> None:
    """Raise AssertionError where ``got`` breaks the rule; ``dtype`` is that of the inputs, ``size`` the norm of the terms whose
    difference this is."""
    ours, theirs = relative_error(got, truth), relative_error(eager, truth)
    theirs = theirs if theirs < float("inf") else 0.0
    norm = float(truth[truth.isfinite()].double().norm())
    limit = 2.0 * theirs + FLOOR[dtype] + torch.finfo(dtype).eps * size / (norm if norm > NOISE else 1.0)
    assert ours <= limit, f"{name}: error {ours:.2e} against float64 is over {limit:.2e} (eager {dtype}: {theirs:.2e})"
