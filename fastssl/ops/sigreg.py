"""SIGReg: how far embeddings are from an isotropic Gaussian, seen from many random directions (Balestriero and LeCun 2025).

    x = z A                                      z (V, N, D), unit columns A (D, S) -> (V, N, S)
    C_k = sum_n cos(t_k x_n),   S_k = sum_n sin(t_k x_n)                             sums (V, 2, K - 1, S), without t_0 = 0
    statistic = N sum_k w_k ((C_k / N - phi_k)^2 + (S_k / N)^2),   phi_k = exp(-t_k^2 / 2)      of each view and direction
    loss = mean over views and directions of the statistic
    dx_n = g 2 / (V S) sum_k w_k t_k ((S_k / N) cos(t_k x_n) - (C_k / N - phi_k) sin(t_k x_n)),     dz = dx A^T

The knots are t_k = k dt, k = 0 .. K - 1, dt = t_max / (K - 1), and w_k = 2 phi_k times the weights of the trapezoidal rule: dt,
half of it at both ends. The knot at 0 adds nothing, since there the cosine and phi are 1.

Knots are evenly spaced, so one sine and cosine of dt x give those of all knots by rotations, and the weighted sum of the backward
is a polynomial in exp(i dt x). x is made tile by tile, twice: in the forward, and again in the backward, which needs nothing but
the sums. So nothing of size N x S is stored, let alone N x S x K.

Bytes: z and A read twice, dz written; 2 (K - 1) V S sums written and read. FLOPs: 2 V N D S in the forward, 4 V N D S in the
backward, and about 6 K each way for each of the V N S elements of x.

``total`` is N as a tensor, where it is known on the device only; otherwise ``samples`` is N. With several processes both count all
samples, and the sums are those of all samples too: one all-reduce of them in the forward, and one of the upstream gradient,
a number, in the backward.
"""

from ._register import define_op, new_accumulator

#: Of the knots; t_k is at most ``MOST_T``.
MOST_KNOTS, MOST_T = 1024, 1024.0


def _fake_sums(z, directions, t_max, knots):
    return new_accumulator(z, z.shape[0], 2, knots - 1, directions.shape[1])


sigreg_sums = define_op("sigreg_sums", "(Tensor z, Tensor directions, float t_max, SymInt knots) -> Tensor", _fake_sums, "sigreg")
sigreg_loss = define_op(
    "sigreg_loss",
    "(Tensor sums, Tensor? total, SymInt samples, float t_max) -> Tensor",
    lambda sums, *_: sums.new_empty(()),
    "sigreg",
)
sigreg_bwd = define_op(
    "sigreg_bwd",
    "(Tensor grad, Tensor sums, Tensor? total, Tensor z, Tensor directions, SymInt samples, float t_max) -> Tensor",
    lambda grad, sums, total, z, *_: z.new_empty(z.shape),
    "sigreg",
)
