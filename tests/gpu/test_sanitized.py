"""Every kernel on tiny ragged shapes, forward and backward, for compute-sanitizer.

    compute-sanitizer --tool memcheck python -m pytest tests/gpu/test_sanitized.py
    compute-sanitizer --tool racecheck python -m pytest -m racecheck tests/gpu/test_sanitized.py

racecheck watches shared memory. It is asked about the kernels of CUDA C++ alone: wgmma and asynchronous copies, of which Triton's
tiles and the vendor's matrix products are made, are ordered by barriers that it may not understand.

A first run without the sanitizer fills Triton's cache of compiled kernels, so that the second starts no compiler. Eager runs on the
host: what the sanitizer sees on the GPU is ours and torch's copies.
"""

import pytest
import torch

from fastssl.functional import moco_loss, nt_xent
from fastssl.testing import contrastive
from fastssl.testing.cases import CASES
from fastssl.testing.compare import assert_no_worse
from tests.gpu.common import on_gpu, rounded
from tests.gpu.op_calls import CALLS, check

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
#: number of entries of a case's shape -> shapes. The first has more rows than a tile and no side that is a multiple of 16; the
#: second has a width that goes in chunks.
RAGGED = {2: [(37, 19), (5, 261)], 3: [(70, 133, 19), (33, 21, 261)]}
TOKENS = [(3, 23, 19), (2, 9, 130)]
#: TILES are the ops of tiles, which run float32 in both precisions. OTHERS are losses that add a kernel or a way of calling one,
#: and ops on rows of tokens and patches.
TILES = ("similarity_symmetric", "similarity_two_sided", "similarity_one_pass", "similarity_cross", "sigmoid_pair")
OTHERS = ("nt_xent", "info_nce_hard", "siglip_grouped", "gather_tokens", "restore_tokens", "embed_visible", "patch_loss")
OTHERS += ("similarity_limited", "patch_loss_normalized", "patch_loss_l1_of_ids")
#: Cases that launch no matrix product, whose own kernels are CUDA C++.
RACES = ("gather_tokens", "restore_tokens", "patch_loss", "patch_loss_normalized", "patch_loss_l1_of_ids")
KINDS = {"bfloat16": (torch.bfloat16, "highest"), "float32": (torch.float32, "highest"), "tf32": (torch.float32, "high")}
racecheck = pytest.mark.racecheck
RUNS = [
    pytest.param(
        *(CASES[name], shape, *KINDS[kind]),
        id=f"{name}-{'x'.join(map(str, shape))}-{kind}",
        marks=[racecheck] if name in RACES else [],
    )
    for name in (*TILES, *OTHERS)
    for shape in (TOKENS if name.endswith("_tokens") else RAGGED[len(CASES[name].shapes[0])])
    for kind in (KINDS if name in TILES else ("bfloat16", "float32"))
]


def value_and_gradients(call, inputs, dtype=None):
    leaves = {name: t.detach().to(dtype or t.dtype).requires_grad_() for name, t in inputs.items()}
    out = call(**leaves)
    finite = out.isfinite().cpu().nonzero().flatten() if out.dim() == 1 else slice(None)
    total = out[finite.to(out.device)].sum() if out.dim() == 1 else out.sum()
    return [out.detach().cpu(), *(g.cpu() for g in torch.autograd.grad(total, list(leaves.values())))]


@pytest.mark.parametrize("case, shape, dtype, precision", RUNS)
def test_a_case(case, shape, dtype, precision):
    inputs, before = case.inputs(shape, dtype, "cpu"), torch.get_float32_matmul_precision()
    truth = value_and_gradients(case.eager, inputs, torch.float64)
    usual = value_and_gradients(case.eager, {name: rounded(t, precision) for name, t in inputs.items()})
    torch.set_float32_matmul_precision(precision)
    try:
        found = value_and_gradients(case.ours, {name: t.cuda() for name, t in inputs.items()})
    finally:
        torch.set_float32_matmul_precision(before)
    for name, *triple in zip(("value", *inputs), found, usual, truth, strict=True):
        assert_no_worse(f"{case.name} {name}", *triple, dtype)


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=name, marks=[] if name == "embed" else [racecheck]) for name, case in CALLS.items()]
)
def test_an_update_or_a_mask(case):
    given = case.tensors()
    check(case, case.call(on_gpu(given)), case.call(given))


@pytest.mark.parametrize("layout", ["dk", "kd"])
def test_ranks_are_counted(layout):
    query, key, queue = (torch.nn.functional.normalize(torch.randn(rows, 19), dim=1) for rows in (37, 37, 203))
    want, counted = moco_loss(query, key, queue, layout="kd", return_stats=True)
    held = queue.t().contiguous() if layout == "dk" else queue
    loss, stats = moco_loss(query.cuda(), key.cuda(), held.cuda(), layout=layout, return_stats=True)
    torch.testing.assert_close(loss.cpu(), want, rtol=1e-5, atol=1e-5)
    assert (stats.rank.cpu() != counted.rank).sum() <= 1


@pytest.mark.parametrize("rows", [130, 700])
def test_partial_sums_are_merged(rows):
    """There are more rows than one split of the columns takes."""
    views = [torch.randn(rows, 33) for _ in range(2)]
    found = nt_xent(*(view.cuda() for view in views))
    torch.testing.assert_close(found.cpu(), contrastive.nt_xent(*views), rtol=1e-5, atol=1e-5)
