"""Cosine and sine of angles that may be large, for the kernels of ``sigreg`` and ``unit_columns``.

    u = scale x quarter turns,    r = u - rint(u) in [-1/2, 1/2],    (cos, sin)(pi r / 2) by minimax polynomials, errors 3e-9,
    and the quadrant, rint(u) mod 4, exchanges them and sets their signs

u is a float64, so the phase is right to float32 while |u| < 2^29. That is three float64 operations an element. From |u| = 2^51 on
r may come out as any number, and is made one of [-1/2, 1/2]: cosine and sine are then those of some angle.
"""

import math
import struct

import triton
import triton.language as tl


def quarter_turns(step: float) -> tuple[float, float]:
    """An angle in quarter turns, as the sum of two numbers of float32: a kernel's float arguments are float32."""
    scale = step / (0.5 * math.pi)
    (high,) = struct.unpack("f", struct.pack("f", scale))
    return high, scale - high


@triton.jit
def wave(x, high, low):
    """cos and sin of an angle x times the one that ``quarter_turns`` split."""
    scale = tl.full((), high, tl.float64) + tl.full((), low, tl.float64)
    u = x.to(tl.float64) * scale
    shift = tl.full((), 6755399441055744.0, tl.float64)  # 1.5 * 2^52: adding it leaves the whole number in the low bits
    shifted = u + shift
    whole = shifted.to(tl.int64, bitcast=True).to(tl.int32)
    f = (u - (shifted - shift)).to(tl.float32)
    f = tl.clamp(f, -0.5, 0.5, propagate_nan=tl.PropagateNan.ALL)
    t = f * f
    p = -0.00460165786 * t + 0.079680033
    p = p * t - 0.64596349
    p = p * t - 4.37113883e-08  # what float32 leaves of pi / 2
    sine = f * 1.57079637 + f * p
    q = 0.000906743517 * t - 0.0208615288
    q = q * t + 0.253669411
    q = q * t - 1.23370051
    cosine = q * t + 1.0
    odd = (whole & 1) != 0
    c = tl.where(odd, sine, cosine)
    s = tl.where(odd, cosine, sine)
    return tl.where(((whole + 1) & 2) != 0, -c, c), tl.where((whole & 2) != 0, -s, s)
