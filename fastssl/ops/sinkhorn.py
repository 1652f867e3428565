"""Contract of the two passes of Sinkhorn's iteration over logits (M, K), which keep a potential of each prototype and no plan.

    start:  top_gk = max over the rows m of group g of x_mk,    sum_gk = sum over them of exp((x_mk - top_gk) / T)
    step:   c_gk   = sum over the rows m of group g of softmax((x_m + b_g) / T)_k              g = (m // inner) mod G

The first normalisation of prototypes gives b = -(top + T log sum), each further one b <- b - T log c. The normalisation of rows
between them is the softmax itself, so that its potentials are never stored, and neither is the plan exp((x + b) / T). All factors
1 / K and 1 / rows of the usual form cancel. With ``heads``, each segment of the K columns has a softmax, and thus a plan, of its
own. The largest logit is that of a prototype over the rows. Subtracting the largest of a row instead would change the result,
because it would weigh the rows before a finite number of iterations.

A potential has the unit of logits and is added before the division by the temperature, as in ``soft_cross_entropy``. c is at least
1 / (K rows) where c of the step before was 1, so nothing underflows. A row of -inf alone adds nothing.

Bytes of a pass: M K elements read, G K numbers written. FLOPs: an exponential and about 4 others (start), two and about 10 (step).
"""

from torch import Tensor

from ._register import define_op, new_accumulator


def _fake_start(logits, temperature, inner, groups):
    return new_accumulator(logits, groups, logits.shape[1]), new_accumulator(logits, groups, logits.shape[1])


sinkhorn_start = define_op(
    "sinkhorn_start",
    "(Tensor logits, Tensor temperature, SymInt inner, SymInt groups) -> (Tensor, Tensor)",
    _fake_start,
    "sinkhorn",
)
_step = define_op(
    "sinkhorn_step",
    "(Tensor logits, Tensor bias, Tensor temperature, SymInt[] heads, SymInt inner) -> Tensor",
    lambda logits, bias, *_: new_accumulator(logits, *bias.shape),
    "sinkhorn",
)


def sinkhorn_step(logits: Tensor, bias: Tensor, temperature: Tensor, heads: list[int], inner: int) -> Tensor:
    """logits (M, K), bias (G, K) -> the column sums (G, K) of the plan whose rows have just been normalised."""
    return _step(logits, bias, temperature, heads, inner)
