"""The symmetric backward with one exponential for Hopper's matrix units, in Gluon: the kernel says itself which warps load and
which multiply and wait, whereas ``similarity_bwd_kernel`` leaves this to Triton.

    w_ij = 2^(s2_ij - c) (v_i + v_j),   out_i = scale / gain sum_j w_ij b_j          a (NA, D), b (NB, D), D = 64 or 128, 16 bits

A program owns 128 rows. It has two groups of four warps with 64 rows each, and one warp that copies columns by TMA into a ring
buffer in shared memory. Both groups read the same copy, so L2 delivers half as many bytes as it would to two programs of 64 rows.
While one group takes exponentials, the other multiplies. Rows and weights are operands in registers, so a group reads nothing but
the columns from shared memory, each of them twice.

FLOP: 4 NA NB D. L2 delivers the 2 NB D bytes of b NA / 128 times. For each tile of 128 x 64 at D = 128, shared memory is read for
64 KiB and written for 16 KiB during 1,024 clocks of products. The kernel has never run on a GPU;
``tests/without_gpu/gluon_on_cpu.py`` runs it on a CPU, with threads in place of its groups of warps. It is used only where a tuned
table asks for it (``TileConfig.specialised``).
"""

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from fastssl.ops._operands import Similarity

from .host.device import device_properties
from .tiles.config import TileConfig
from .tiles.terms import Terms

LOG2E = gl.constexpr(1.4426950408889634)
#: Rows of a group of four warps, as many as one wgmma instruction takes.
ROWS = gl.constexpr(64)
#: Rows of a program's two groups.
BLOCK_M = 128


@gluon.jit
def _load_columns(b_desc, ring, full, empty, lo, hi, BN: gl.constexpr, STAGES: gl.constexpr):
    """Copies b[lo:hi], BN rows at a time, each time into the next stage of the ring once both groups have finished reading it."""
    for start in range(lo, hi, BN):
        turn = (start - lo) // BN
        stage = turn % STAGES
        mbarrier.wait(empty.index(stage), ((turn // STAGES) & 1) ^ 1)
        mbarrier.expect(full.index(stage), b_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(b_desc, [start, 0], full.index(stage), ring.index(stage))


@gluon.jit
def _load_rows(a_ptr, first, NA, s_a, D: gl.constexpr, layout: gl.constexpr):
    """a[first : first + 64] (64, D) as a left operand in registers, zeros beyond NA."""
    rows = first + gl.arange(0, ROWS, gl.SliceLayout(1, layout))
    dims = gl.arange(0, D, gl.SliceLayout(0, layout))
    return gl.load(a_ptr + rows.to(gl.int64)[:, None] * s_a + dims[None, :], mask=(rows < NA)[:, None], other=0.0)


@gluon.jit
def _multiply(
    a_ptr, a_id_ptr, b_id_ptr, range_ptr, v_a_ptr, v_b_ptr, out_ptr, ring, full, empty, first, split, lo, hi, stored, NA, s_a,
    scale2, centre, factor, D: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """out[split, first : first + 64] (64, D), summed over the columns lo..hi. Only rows below ``stored`` are written."""
    logits: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BN, 16])
    sums: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, D, 16])
    a = _load_rows(a_ptr, first, NA, s_a, D, gl.DotOperandLayout(0, logits, 2))
    rows = first + gl.arange(0, ROWS, gl.SliceLayout(1, logits))
    v_a = gl.load(v_a_ptr + rows, mask=rows < NA, other=0.0)  # (64,)
    IDS: gl.constexpr = range_ptr is not None
    if IDS:
        a_id = gl.load(a_id_ptr + gl.minimum(rows, NA - 1))
        lowest = gl.min(a_id, 0).to(gl.int64)
        highest = gl.max(a_id, 0).to(gl.int64)
    acc = gl.zeros((ROWS, D), gl.float32, sums)
    nothing = gl.zeros((ROWS, BN), gl.float32, logits)
    for start in range(lo, hi, BN):
        turn = (start - lo) // BN
        stage = turn % STAGES
        cols = start + gl.arange(0, BN, gl.SliceLayout(0, logits))
        v_b = gl.load(v_b_ptr + cols)  # (BN,)
        b = ring.index(stage)  # (BN, D)
        mbarrier.wait(full.index(stage), (turn // STAGES) & 1)
        s = warpgroup_mma(a, b.permute((1, 0)), nothing, use_acc=False, is_async=True)
        s = warpgroup_mma_wait(0, deps=[s])
        s = s * scale2 - centre
        if IDS:
            at = range_ptr + start // BN * 2
            if (gl.load(at) <= highest) & (gl.load(at + 1) >= lowest):
                s = gl.where(a_id[:, None] == gl.load(b_id_ptr + cols)[None, :], float("-inf"), s)
        w = (gl.exp2(s) * (v_a[:, None] + v_b[None, :])).to(b.dtype)
        acc = warpgroup_mma(gl.convert_layout(w, gl.DotOperandLayout(0, sums, 2)), b, acc, is_async=True)
        acc = warpgroup_mma_wait(0, deps=[acc])
        mbarrier.arrive(empty.index(stage), count=1)
    rows = first + gl.arange(0, ROWS, gl.SliceLayout(1, sums))
    dims = gl.arange(0, D, gl.SliceLayout(0, sums))
    at = (split.to(gl.int64) * NA + rows)[:, None] * D + dims[None, :]
    gl.store(out_ptr + at, (acc * factor).to(out_ptr.dtype.element_ty), mask=(rows < stored)[:, None])


@gluon.jit
def similarity_narrow_bwd_kernel(
    a_ptr, b_desc, a_id_ptr, b_id_ptr, range_ptr, v_a_ptr, v_b_ptr, stats_ptr, factor_ptr, out_ptr, NA, NB, s_a, scale, split_len,
    FINAL: gl.constexpr, D: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """out (splits, NA, D), times scale / gain if FINAL. The kernel writes nothing where stats (3,) ask for two exponentials. grid
    (NA / 128, splits); NB and split_len are multiples of BN."""
    first = gl.program_id(0) * (2 * ROWS)
    split = gl.program_id(1)
    if factor_ptr is not None:
        scale = scale * gl.load(factor_ptr).to(gl.float32)
    centre = gl.load(stats_ptr)
    mine = gl.load(stats_ptr + 1) > 0.0
    lo = split * split_len
    hi = gl.where(mine, gl.minimum(lo + split_len, NB), lo)
    stored = gl.where(mine, NA, 0)
    factor = 1.0
    if FINAL:
        factor = scale * gl.load(stats_ptr + 2)
    scale2 = scale * LOG2E
    ring = gl.allocate_shared_memory(b_desc.dtype, [STAGES, BN, D], b_desc.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=2)
    gl.warp_specialize(
        [
            (
                _multiply,
                (
                    a_ptr, a_id_ptr, b_id_ptr, range_ptr, v_a_ptr, v_b_ptr, out_ptr, ring, full, empty, first, split, lo, hi,
                    stored, NA, s_a, scale2, centre, factor, D, BN, STAGES,
                ),
            ),
            (
                _multiply,
                (
                    a_ptr, a_id_ptr, b_id_ptr, range_ptr, v_a_ptr, v_b_ptr, out_ptr, ring, full, empty, first + ROWS, split, lo,
                    hi, stored, NA, s_a, scale2, centre, factor, D, BN, STAGES,
                ),
            ),
            (_load_columns, (b_desc, ring, full, empty, lo, hi, BN, STAGES)),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip


def takes(config: TileConfig, operands: Similarity, ranges: Tensor | None) -> bool:
    """Whether this kernel serves a launch with one exponential. It does where a tuned table asks for it, on a Hopper GPU, if the
    columns are whole tiles that TMA can copy."""
    a, b = operands.x, operands.y
    whole = b.shape[1] in (64, 128) and b.shape[0] % config.block_n == 0
    aligned = b.data_ptr() % 16 == 0 and b.stride(0) * b.element_size() % 16 == 0
    hopper = device_properties(a.device).arch == 90 and a.element_size() == 2
    return config.specialised and hopper and whole and aligned and (operands.y_id is None) == (ranges is None)


def narrow_backward(
    operands: Similarity,
    terms: Terms,
    ranges: Tensor | None,
    out: Tensor,
    split_len: int,
    final: bool,
    config: TileConfig,
) -> None:
    """Fills out, (N, D) if ``final`` and otherwise (splits, N, D) float32, for the rows of x; ``ranges`` are those that
    ``row_bounds`` gives of the ids of y."""
    a, b = operands.x, operands.y
    assert terms.of_x is not None and terms.of_y is not None
    (na, d), nb, bn = a.shape, b.shape[0], config.block_n
    dtype = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}[b.dtype]
    columns = TensorDescriptor.from_tensor(b, [bn, d], gl.NVMMASharedLayout.get_default_for([bn, d], dtype))
    similarity_narrow_bwd_kernel[(triton.cdiv(na, BLOCK_M), triton.cdiv(nb, split_len))](
        a, columns, operands.x_id, operands.y_id, ranges, terms.of_x[2], terms.of_y[2], terms.stats, operands.scale_factor, out,
        na, nb, a.stride(0), operands.scale, split_len, final, d, bn, config.num_stages, num_warps=4,
    )  # fmt: skip
