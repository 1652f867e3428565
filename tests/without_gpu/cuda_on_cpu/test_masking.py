"""The masking ops' CUDA source on the CPU, from the schema to the memory, against the plain-PyTorch references.

Every test runs twice: threads in order with a launch as on a GPU, and in the other order on three blocks, whose warps take rows in
turn. A result that depends on the order of threads or blocks is another one there. What a kernel leaves out is NaN.
"""

import ctypes
import itertools
import random
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from fastssl.functional import patchify
from fastssl.reference import embed_visible as embed_reference
from fastssl.reference import gather_tokens as gather_reference
from fastssl.reference import mask_ids as mask_reference
from fastssl.reference import patch_loss as loss_reference
from fastssl.reference import restore_tokens as restore_reference
from fastssl.testing.compare import assert_no_worse
from tests.support.masking_calls import op_calls, short_calls

ROOT = Path(__file__).resolve().parents[3]
pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here"),
    pytest.mark.usefixtures("one_thread", "poisoned"),
]
F32, B16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
FLOATS = (F32, B16, F16, F64)
NAMES = ["mask_ids", "gather_tokens_fwd", "gather_tokens_bwd", "restore_tokens_fwd", "restore_tokens_bwd", "visible_patches_fwd"]
NAMES += ["visible_patches_bwd", "visible_positions", "patch_loss_fwd", "patch_loss_bwd"]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    out = tmp_path_factory.mktemp("cuda_on_cpu") / "masking.so"
    folder, torch_folder = ROOT / "tests" / "without_gpu" / "cuda_on_cpu", Path(torch.__file__).parent
    includes = [folder, ROOT / "csrc", torch_folder / "include", torch_folder / "include/torch/csrc/api/include"]
    fma = ["-mfma"] if "fma" in Path("/proc/cpuinfo").read_text() else []
    flags = ["-O1", "-std=c++20", "-shared", "-fPIC", "-fno-strict-aliasing", "-Wno-unknown-pragmas", *fma]
    flags += ["-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"]  # ends the process, as a GPU ends the context
    flags += ["-DTORCH_TARGET_VERSION=0x020b000000000000", *(f"-I{path}" for path in includes)]
    links = [f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"]
    subprocess.run(["g++", *flags, str(folder / "masking.cpp"), "-o", str(out), *links], check=True)
    defined = torch.library.Library("fastssl_on_cpu", "FRAGMENT")
    for name in NAMES:
        defined.define(str(getattr(torch.ops.fastssl, name).default._schema).removeprefix("fastssl::"))
    torch.ops.load_library(str(out))
    yield ctypes.CDLL(str(out))
    defined._destroy()


@pytest.fixture(params=["forwards", "backwards"])
def ours(library, request):
    library.schedule(request.param == "backwards", ctypes.c_int64(3 if request.param == "backwards" else 1 << 30))
    return torch.ops.fastssl_on_cpu


def randn(*shape, dtype=F32):
    return torch.randn(*shape, dtype=F64).to(dtype)


def laid(x, how):
    """The same values elsewhere: "odd": one element behind an aligned one; "gaps": a view of a wider tensor, NaN around it."""
    if how == "odd":
        room = x.new_full((x.numel() + 1,), float("nan"))
        view = room[1:].view(x.shape)
    elif how == "gaps":
        room = x.new_full([2 * x.shape[0], *(side + 1 for side in x.shape[1:-1]), x.shape[-1] + 8], float("nan"))
        view = room[1::2, *(slice(1, None) for _ in x.shape[1:-1]), 8:]
    else:
        return x
    view.copy_(x)
    return view


def same(got, expected):
    return all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def permutations(rows, length):
    return torch.rand(rows, length).argsort(1)


LAYOUTS = ("dense", "odd", "gaps")

# --- mask_ids ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("length", [1, 2, 3, 31, 32, 33, 196, 255, 300, 577])
def test_ids_are_those_of_a_stable_argsort(ours, length, dtype):
    """Few different values: ties; NaN of both signs, infinities, zeros of both signs, subnormal numbers."""
    special = torch.tensor([float("nan"), -float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 6e-8, -6e-8, 1e-42, -1e-42])
    noise = torch.randint(-9, 9, (3, length)).double() / 7
    at = torch.rand(3, length) < 0.3
    noise[at] = special[torch.randint(len(special), (int(at.sum()),))].double()
    noise = noise.to(dtype)
    for keep in {0, 1, length // 4, length}:
        arguments = (noise, None, 3, length, keep)
        assert same(ours.mask_ids(*arguments), mask_reference.mask_ids(*arguments))


@pytest.mark.parametrize("length", [1, 4, 5, 49, 196, 1031])
@pytest.mark.parametrize("seed", [0, -7, 2**63 - 1, 1 << 40])
def test_ids_of_a_seed(ours, length, seed):
    arguments = (None, torch.tensor(seed), 4, length, length // 4)
    assert same(ours.mask_ids(*arguments), mask_reference.mask_ids(*arguments))


def test_the_most_ids(ours):
    """Shared memory is full: 4096 keys of 8 bytes; one more is refused."""
    arguments = (torch.rand(1, 4096, dtype=F64).round(decimals=3), None, 1, 4096, 99)
    assert same(ours.mask_ids(*arguments), mask_reference.mask_ids(*arguments))
    with pytest.raises(RuntimeError, match="at most 4096 ids of a sample, got 4097"):
        ours.mask_ids(torch.rand(1, 4097), None, 1, 4097, 99)


# --- gather_tokens ----------------------------------------------------------------------------------------------------------

# N, L, K, D
TOKENS = [(3, 5, 4, 7), (1, 1, 1, 1), (1, 150, 5, 40), (3, 6, 0, 8), (1, 4, 9, 257), (33, 2, 1, 16)]


@pytest.mark.parametrize("how", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", TOKENS, ids=str)
def test_gather(ours, shape, dtype, how):
    n, length, kept, width = shape
    x, ids = laid(randn(n, length, width, dtype=dtype), how), torch.randint(0, length, (n, kept))
    assert torch.equal(ours.gather_tokens_fwd(x, ids), gather_reference.gather_tokens_fwd(x, ids))


def test_gather_of_ids_out_of_range_gives_zeros(ours):
    x, ids = randn(2, 4, 24), torch.tensor([[0, -1, 4, 3], [2**62, 1, -(2**63), 2]])
    got = ours.gather_tokens_fwd(x, ids)
    assert torch.equal(got[0, [0, 3]], x[0, [0, 3]]) and torch.equal(got[1, [1, 3]], x[1, [1, 2]])
    assert not got[0, 1:3].any() and not got[1, ::2].any()


@pytest.mark.parametrize("how", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", TOKENS, ids=str)
def test_gradient_of_gather_for_ids_that_differ(ours, shape, dtype, how):
    n, length, kept, width = shape
    kept = min(kept, length)
    dout, ids = laid(randn(n, kept, width, dtype=dtype), how), permutations(n, length)[:, :kept].contiguous()
    assert torch.equal(ours.gather_tokens_bwd(dout, ids, length), gather_reference.gather_tokens_bwd(dout, ids, length))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kept, length", [(7, 3), (300, 2), (40, 40), (131, 1)])
def test_gradient_of_gather_for_repeated_ids(ours, kept, length, dtype):
    dout, ids = randn(2, kept, 70, dtype=dtype), torch.randint(0, length, (2, kept))
    got, eager = ours.gather_tokens_bwd(dout, ids, length), torch.zeros(2, length, 70, dtype=dtype)
    for n, k in torch.cartesian_prod(torch.arange(2), torch.arange(kept)):
        eager[n, ids[n, k]] += dout[n, k]
    truth = gather_reference.gather_tokens_bwd(dout.double(), ids, length)
    assert_no_worse("dx", got, eager, truth, dtype)
    in_order = torch.zeros(2, length, 70, dtype=torch.promote_types(dtype, F32))
    for n, k in torch.cartesian_prod(torch.arange(2), torch.arange(kept)):
        in_order[n, ids[n, k]] += dout[n, k]
    assert torch.equal(got, in_order.to(dtype))


def test_ids_out_of_range_have_no_gradient(ours):
    dout, ids = randn(1, 5, 12), torch.tensor([[-1, 2, 4, 2**40, 0]])
    got = ours.gather_tokens_bwd(dout, ids, 4)
    assert torch.equal(got[0, [2, 0]], dout[0, [1, 4]]) and not got[0, [1, 3]].any()


# --- restore_tokens ---------------------------------------------------------------------------------------------------------

# N, L, K, P, D
RESTORED = [(2, 5, 2, 1, 24), (1, 1, 1, 0, 1), (3, 4, 0, 2, 7), (1, 200, 70, 3, 40), (5, 3, 3, 0, 130), (2, 3, 0, 0, 8)]


@pytest.mark.parametrize("how", LAYOUTS)
@pytest.mark.parametrize("dtypes", [(F32, F32), (B16, B16), (F16, F16), (F64, F64), (B16, F32), (F16, F64), (F32, F64)], ids=str)
@pytest.mark.parametrize("shape", RESTORED, ids=str)
def test_restore(ours, shape, dtypes, how):
    n, length, kept, prefix, width = shape
    x, token = laid(randn(n, prefix + kept, width, dtype=dtypes[0]), how), randn(width, dtype=dtypes[1])
    for pos in (None, randn(prefix + length, width, dtype=dtypes[1])):
        arguments = (x, permutations(n, length), token, pos, prefix)
        got, expected = ours.restore_tokens_fwd(*arguments), restore_reference.restore_tokens_fwd(*arguments)
        assert got.dtype == dtypes[1] and torch.equal(got, expected)


@pytest.mark.parametrize("how", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [*RESTORED, (40, 7, 2, 1, 12)], ids=str)
def test_gradient_of_restore(ours, shape, dtype, how):
    n, length, kept, prefix, width = shape
    dout, ids = laid(randn(n, prefix + length, width, dtype=dtype), how), permutations(n, length)
    for need in ((True, True), (True, False), (False, True)):
        arguments = (ids, kept, prefix, need)
        dx, dtoken = ours.restore_tokens_bwd(dout, *arguments)
        expected, eager = restore_reference.restore_tokens_bwd(dout, *arguments)
        truth = restore_reference.restore_tokens_bwd(dout.double(), *arguments)[1]
        assert torch.equal(dx, expected) and dtoken.dtype == eager.dtype and dtoken.shape == eager.shape
        assert_no_worse("dtoken", dtoken, eager, truth, F64 if dtype == F64 else F32)


def test_restore_takes_ids_out_of_range_as_removed(ours):
    x, token, ids = randn(1, 3, 8), randn(8), torch.tensor([[1, -1, 7, 0, 2**50]])
    got = ours.restore_tokens_fwd(x, ids, token, None, 1)
    assert torch.equal(got[0], torch.stack([x[0, 0], x[0, 2], token, token, x[0, 1], token]))
    dout = randn(1, 6, 8)
    dx, dtoken = ours.restore_tokens_bwd(dout, ids, 2, 1, (True, True))
    assert torch.equal(dx[0], dout[0, [0, 4, 1]])
    torch.testing.assert_close(dtoken, dout[0, [2, 3, 5]].sum(0))


def test_division_by_multiplication(library):
    """Every entry of a patch finds its place by it; entries are below 2^31."""
    draw = random.Random(0)
    numbers = [0, 1, 2, 2**31 - 1, 2**31 - 2] + [draw.randrange(2 ** draw.randrange(1, 32)) for _ in range(60)]
    divisors = [1, 2, 3, 7, 2**16, 2**30 + 1, 2**31 - 1, 2**31] + [
        draw.randrange(1, 2 ** draw.randrange(1, 32)) for _ in range(200)
    ]
    for by in divisors:
        for n in [*numbers, by - 1, by + 1, 5 * by - 1, 5 * by]:
            if n < 2**31:
                assert library.divided(ctypes.c_uint32(n), ctypes.c_uint32(by)) == n // by, (n, by)


# --- embed_visible ----------------------------------------------------------------------------------------------------------

# N, C, patch, grid, K, P
IMAGES = [
    (2, 3, (16, 16), (2, 3), 2, 1),
    (1, 1, (1, 1), (3, 2), 4, 0),
    (3, 2, (2, 3), (3, 3), 5, 2),
    (2, 3, (14, 14), (2, 2), 3, 1),
    (2, 2, (4, 8), (2, 2), 0, 1),
    (1, 5, (3, 64), (1, 1), 1, 0),
]


def images_of(shape, dtype, how):
    n, c, (height, width), (down, across), _, _ = shape
    return laid(randn(n, c, height * down, width * across, dtype=dtype), how)


@pytest.mark.parametrize("how", LAYOUTS)
@pytest.mark.parametrize("dtypes", [*((d, d) for d in FLOATS), (F32, B16), (F32, F16), (B16, F32), (F64, F16), (F16, F64)], ids=str)
@pytest.mark.parametrize("shape", IMAGES, ids=str)
def test_visible_patches(ours, shape, dtypes, how):
    n, _, patch, (down, across), kept, prefix = shape
    images, ids = images_of(shape, dtypes[0], how), torch.randint(0, down * across, (n, kept))
    arguments = (images, ids, *patch, prefix, dtypes[1])
    got, expected = ours.visible_patches_fwd(*arguments), embed_reference.visible_patches_fwd(*arguments)
    assert got.dtype == dtypes[1] and torch.equal(got, expected)


@pytest.mark.parametrize("how", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", IMAGES, ids=str)
def test_gradient_of_visible_patches(ours, shape, dtype, how):
    n, c, (height, width), (down, across), kept, prefix = shape
    kept = min(kept, down * across)
    ids = permutations(n, down * across)[:, :kept].contiguous()
    rows = laid(randn(n, prefix + kept, c * height * width, dtype=dtype), how)
    arguments = (rows, ids, (n, c, height * down, width * across), height, width, prefix)
    assert torch.equal(ours.visible_patches_bwd(*arguments), embed_reference.visible_patches_bwd(*arguments))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_gradient_of_patches_seen_twice_and_of_none(ours, dtype):
    rows, ids = randn(1, 5, 2 * 4 * 8, dtype=dtype), torch.tensor([[1, 3, 1, -1, 4]])
    got = patchify(ours.visible_patches_bwd(rows, ids, (1, 2, 8, 16), 4, 8, 0), (4, 8), layout="cpq")
    wide = rows.to(torch.promote_types(dtype, F32))
    assert torch.equal(got[0, 1], (wide[0, 0] + wide[0, 2]).to(dtype)) and torch.equal(got[0, 3], rows[0, 1])
    assert not got[0, ::2].any()


def test_a_patch_out_of_range_is_zero(ours):
    images, ids = randn(1, 3, 8, 8), torch.tensor([[4, 1, -1]])
    got = ours.visible_patches_fwd(images, ids, 4, 4, 1, F32)
    assert torch.equal(got[0, 2], patchify(images, 4, layout="cpq")[0, 1]) and not got[0, [0, 1, 3]].any()
    pos, bias = randn(5, 6), randn(6)
    got = ours.visible_positions(ids, bias, pos, randn(1, 6), 6, F32)
    assert torch.equal(got[0, 1:], torch.stack([bias, pos[2] + bias, bias]))


@pytest.mark.parametrize("given", [(b, p, x) for b in (0, 1) for p in (0, 1) for x in (0, 2)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("width", [1, 40, 129])
def test_visible_positions(ours, width, dtype, given):
    with_bias, with_pos, before = given
    bias = randn(width, dtype=dtype) if with_bias else None
    pos = randn(before + 6, width, dtype=dtype) if with_pos else None
    prefix = randn(before, width, dtype=dtype) if before else None
    arguments = (torch.randint(0, 6, (3, 4)), bias, pos, prefix, width, dtype)
    assert torch.equal(ours.visible_positions(*arguments), embed_reference.visible_positions(*arguments))


# --- patch_loss -------------------------------------------------------------------------------------------------------------

# channels, patch, grid: a row of pred in 8 shares of shared memory, in 2 (float64: 1), in none; pixels read by fours, twos, ones
PATCHES = [(3, (4, 8), (2, 3)), (1, (2, 1), (1, 1)), (3, (7, 5), (3, 1)), (2, (32, 48), (1, 2)), (3, (56, 56), (1, 2))]
PATCHES += [(3, (3, 14), (2, 1)), (5, (2, 4), (1, 2)), (1, (4, 4), (2, 1))]
HOWS = [(True, True, False), (False, True, True), (True, False, True), (False, False, False)]  # channels last, normalised, l1
WEIGHTS = ("mask", "shares", "ids")
REFERENCE = loss_reference.patch_loss_fwd, loss_reference.patch_loss_bwd
PAIRS = [*((dtype, dtype) for dtype in FLOATS), (F32, B16), (F64, F16)]  # images, pred


def loss_inputs(patch, image_dtype, dtype, weights, how):
    channels, (height, width), (down, across) = patch
    n, length, entries = 2, down * across, channels * height * width
    images = laid(3 + 2 * randn(n, channels, height * down, width * across, dtype=image_dtype), how)
    mask = ids = None
    rows = length
    if weights == "ids":
        rows = (length + 1) // 2
        ids = permutations(n, length)[:, :rows].contiguous()
    else:
        mask = (torch.rand(n, length) < 0.6).float() if weights == "mask" else torch.rand(n, length)
        mask[0, 0], mask[1, -1] = 1.0, 0.0
    return images, laid(randn(n, rows, entries, dtype=dtype), how), mask, ids


def whole(images, pred, mask, ids, how, forward, backward):
    """Loss, total and gradient; rows of weight 0 of pred are NaN and must not be seen."""
    if mask is not None:
        pred.masked_fill_((mask == 0)[:, :, None], float("nan"))
    loss, total, stats = forward(images, pred, mask, ids, *how)
    grad = torch.full_like(loss, 0.7)
    return loss, total, stats, backward(grad, total, stats, images, pred, mask, ids, *how)


@pytest.mark.parametrize("form", HOWS, ids=str)
@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
@pytest.mark.parametrize("patch", PATCHES, ids=str)
def test_patch_loss(ours, patch, dtypes, form):
    channels_last, normalize, absolute = form
    turn = PATCHES.index(patch) + HOWS.index(form)
    layout, weights = LAYOUTS[turn % 3], WEIGHTS[(turn + PAIRS.index(dtypes)) % 3]
    images, pred, mask, ids = loss_inputs(patch, *dtypes, weights, layout)
    how = (*patch[1], channels_last, normalize, 1e-6, absolute)
    got = whole(images, pred, mask, ids, how, ours.patch_loss_fwd, ours.patch_loss_bwd)
    clean = pred.nan_to_num(0.0)
    eager = whole(images, clean.clone(), mask, ids, how, *REFERENCE)
    wide = [t if t is None else t.double() for t in (images, clean, mask)]
    truth = whole(*wide, ids, how, *REFERENCE)
    removed = torch.ones(pred.shape[:2], dtype=torch.bool) if mask is None else mask != 0
    sums = F64 if dtypes[1] == F64 else F32
    assert all(a.dtype == b.dtype and a.shape == b.shape for a, b in zip(got, eager, strict=True))
    assert_no_worse("loss", got[0], eager[0], truth[0], sums)
    torch.testing.assert_close(got[1].double(), truth[1], rtol=1e-6, atol=0)
    if normalize:
        assert_no_worse("stats", got[2][removed], eager[2][removed], truth[2][removed], sums)
        assert not got[2][~removed].any()
    assert_no_worse("dpred", got[3][removed], eager[3][removed], truth[3][removed], dtypes[1])
    assert not got[3][~removed].any()


def test_no_removed_patch_and_ids_out_of_range(ours):
    images, pred = randn(2, 3, 8, 8), randn(2, 4, 48)
    how = (4, 4, True, False, 1e-6, False)
    *sums, _, dpred = whole(images, pred.clone(), torch.zeros(2, 4), None, how, ours.patch_loss_fwd, ours.patch_loss_bwd)
    assert [float(t) for t in sums] == [0.0, 0.0] and not dpred.any()
    ids = torch.tensor([[0, 4, 2], [-1, 2**60, 3]])
    loss, total, _, dpred = whole(images, pred[:, :3], None, ids, how, ours.patch_loss_fwd, ours.patch_loss_bwd)
    known = [(0, 0, 0), (0, 2, 2), (1, 2, 3)]  # sample, row, patch
    alone = [
        whole(images[n : n + 1], pred[n : n + 1, k : k + 1], None, torch.tensor([[at]]), how, *REFERENCE)[0] for n, k, at in known
    ]
    torch.testing.assert_close(loss, sum(alone) / 3)
    assert float(total) == 3.0 and not dpred[0, 1].any() and not dpred[1, :2].any() and dpred[0, 0].any()


def test_ops_refuse_tensors_that_are_too_short(ours):
    """What a call without Python's checks could make a kernel read beside a tensor. Ids out of range are not looked at: zeros."""
    unread = ("gather_tokens_fwd, argument 0 shorter in 1", "visible_positions, argument 2 shorter in 0")
    for op, words, arguments in short_calls(op_calls()):
        if op in NAMES and words not in unread:
            with pytest.raises(RuntimeError, match=": bad "):
                getattr(ours, op)(*arguments)


def test_bits_do_not_depend_on_the_order_of_threads(library):
    """Forwards and backwards over threads and blocks; with one block, warps take many rows. Blocks add up the loss alone."""
    images, pred, mask, _ = loss_inputs((3, (4, 8), (5, 9)), F32, B16, "shares", "dense")
    dout, ids = randn(9, 31, 70, dtype=F16), permutations(9, 30)
    repeated, each = torch.randint(0, 3, (9, 31)), torch.ops.fastssl_on_cpu
    results = []
    for blocks, backwards in itertools.product((1 << 30, 1), (False, True)):
        library.schedule(backwards, ctypes.c_int64(blocks))
        how = (4, 8, True, True, 1e-6, False)
        results.append(list(whole(images, pred, mask, None, how, each.patch_loss_fwd, each.patch_loss_bwd)))
        results[-1] += [*each.restore_tokens_bwd(dout, ids, 7, 1, (True, True)), each.gather_tokens_bwd(dout, repeated, 3)]
        results[-1] += each.mask_ids(None, torch.tensor(5), 3, 100, 25)
    assert same(results[0], results[1]) and same(results[2], results[3])
    assert same(results[0][1:], results[2][1:])
