"""The masking ops' CUDA C++ kernels on a GPU: they have the CPU's bits or are no worse than eager, they take one launch, never wait
for the GPU, run in graphs, and serve large tensors."""

import pytest
import torch

from fastssl.functional import embed_visible, gather_tokens, mask_ids, masked_patch_loss, random_masking, restore_tokens
from fastssl.graphs import record
from fastssl.ops._register import OWNERS, why_not_cuda
from fastssl.testing import masking as eager
from fastssl.testing.compare import assert_no_worse
from tests.gpu.common import no_sync, odd, same

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
OPS = (
    "mask_ids",
    *("gather_tokens_fwd", "gather_tokens_bwd", "restore_tokens_fwd", "restore_tokens_bwd"),
    *("visible_patches_fwd", "visible_patches_bwd", "visible_positions", "patch_loss_fwd", "patch_loss_bwd"),
)


def randn(*shape, dtype=torch.float32):
    return torch.randn(*shape, dtype=torch.float64).to(dtype)


def run(call, tensors, device="cuda", place=None):
    """The value of ``call(**tensors)`` and the gradients of its float tensors, for an upstream gradient that differs by entry."""
    place = place or (lambda t: t.to(device))
    inputs = {k: place(v.detach()).requires_grad_(v.is_floating_point()) for k, v in tensors.items()}
    out = call(**inputs)
    upstream = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).reshape(out.shape).to(out.dtype).to(device)
    wanted = [t for t in inputs.values() if t.requires_grad]
    return [out.detach(), *torch.autograd.grad(out, wanted, upstream)]


def check_against_eager(name, ours, eager_call, tensors, dtype):
    own_dtype = run(eager_call, tensors)
    truth = run(eager_call, {k: v.double() if v.is_floating_point() else v for k, v in tensors.items()})
    for i, triple in enumerate(zip(ours, own_dtype, truth, strict=True)):
        assert_no_worse(f"{name}[{i}]", *(t.cpu() for t in triple), dtype)


@pytest.mark.cuda_only
def test_the_owner_is_cuda():
    assert why_not_cuda is None
    assert {OWNERS[op]["CUDA"] for op in OPS} == {"CUDA C++"}


# --- values -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (300, 196), (64, 1024), (5, 4095), (2, 4096), (2, 5000)], ids=str)
def test_ids_of_noise_are_the_cpus(size, dtype):
    """The noise has few different values, so there are ties. Rows of more than 4,096 ids are sorted in another way."""
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 6e-8, -1e-42], dtype=torch.float64)
    noise = torch.randint(-50, 50, size).double() / 7
    at = torch.rand(size) < 0.1
    noise[at] = special[torch.randint(len(special), (int(at.sum()),))]
    noise = noise.to(dtype)
    assert same(mask_ids(size, noise=noise.cuda()), mask_ids(size, noise=noise))


@pytest.mark.parametrize("seed", [0, -1, 123456789012345])
@pytest.mark.parametrize("size", [(1, 1), (4096, 196), (7, 49), (3, 4096)], ids=str)
def test_ids_of_a_seed_are_the_cpus(size, seed):
    assert same(mask_ids(size, seed=seed, device="cuda"), mask_ids(size, seed=seed))
    assert same(mask_ids(size, seed=torch.tensor(seed, device="cuda")), mask_ids(size, seed=seed))


@pytest.mark.parametrize("place", [lambda t: t.cuda(), lambda t: odd(t.cuda())], ids=["aligned", "odd"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (64, 196, 49, 768), (5, 33, 7, 130), (2, 1500, 700, 24), (3, 9, 9, 17)], ids=str)
def test_tokens_taken_and_brought_back_have_the_cpus_bits(shape, dtype, place):
    """All ids differ, so each gradient is a number of the upstream gradient at another place, unchanged."""
    n, length, kept, width = shape
    order = torch.rand(n, length).argsort(1)
    place_all = lambda t: place(t) if t.is_floating_point() else t.cuda()  # noqa: E731
    tensors = {"x": randn(n, length, width, dtype=dtype), "ids": order[:, :kept].contiguous()}
    assert same(run(gather_tokens, tensors, place=place_all), run(gather_tokens, tensors, "cpu"))
    restored = {"x": randn(n, 1 + kept, width, dtype=dtype), "ids_restore": order.argsort(1)}
    restored |= {"mask_token": randn(1, 1, width, dtype=dtype)}
    got, expected = run(restore_tokens, restored, place=place_all), run(restore_tokens, restored, "cpu")
    assert same(got[:2], expected[:2])
    check_against_eager("restore", got, eager.restore_tokens, restored, dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_repeated_ids_are_added_in_order(dtype):
    tensors = {"x": randn(9, 6, 200, dtype=dtype), "ids": torch.randint(0, 6, (9, 400))}
    got = run(gather_tokens, tensors)
    assert same(got, run(gather_tokens, tensors, "cpu"))
    check_against_eager("gather", got, eager.gather, tensors, dtype)


@pytest.mark.cuda_only
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_ids_out_of_range_read_nothing(dtype):
    x, ids = randn(2, 5, 64, dtype=dtype).cuda(), torch.tensor([[0, -1, 5, 4], [2**62, 1, -(2**63), 2]], device="cuda")
    got = gather_tokens(x, ids)
    assert torch.equal(got[0, [0, 3]], x[0, [0, 4]]) and torch.equal(got[1, [1, 3]], x[1, [1, 2]])
    assert not got[0, 1:3].any() and not got[1, ::2].any()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("patch", [(16, 16), (14, 14), (2, 3), (1, 1), (4, 64)], ids=str)
def test_visible_patches_are_no_worse_than_a_convolution(patch, dtype):
    n, width, prefix = 5, 96, 2
    tensors = {
        "images": randn(n, 3, 3 * patch[0], 4 * patch[1], dtype=dtype),
        "weight": randn(width, 3, *patch, dtype=dtype),
        "bias": randn(width, dtype=dtype),
        "pos_embed": randn(1, prefix + 12, width, dtype=dtype),
        "prefix_tokens": randn(1, prefix, width, dtype=dtype),
        "ids": torch.rand(n, 12).argsort(1)[:, :5].contiguous(),
    }
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        check_against_eager("embed", run(embed_visible, tensors), eager.embed_visible, tensors, dtype)


@pytest.mark.parametrize(
    "how", [{"norm_pix_loss": True}, {"layout": "cpq", "loss": "l1"}, {"norm_pix_loss": True, "layout": "cpq"}]
)
@pytest.mark.parametrize("dtypes", [*((d, d) for d in FLOATS), (torch.float32, torch.bfloat16)], ids=str)
@pytest.mark.parametrize("patch", [(16, 16), (14, 14), (1, 2), (32, 32), (64, 64)], ids=str)
def test_the_loss_is_no_worse_than_eager(patch, dtypes, how):
    """Rows of pred that belong to no removed patch are NaN, since no kernel may read them."""
    n, (height, width) = 6, patch
    images = (3 + randn(n, 3, 2 * height, 3 * width)).to(dtypes[0]).cuda()
    pred, mask = randn(n, 6, 3 * height * width, dtype=dtypes[1]), (torch.rand(n, 6) < 0.7).float().cuda()
    mask[0, 0], mask[1, 1] = 1, 0
    hidden = pred.masked_fill((mask == 0).cpu()[:, :, None], float("nan"))
    got = run(lambda pred: masked_patch_loss(images, pred, mask, patch, **how), {"pred": hidden})

    def eager_loss(pred):
        return eager.patch_loss(images.to(torch.promote_types(images.dtype, pred.dtype)), pred, mask, patch, **how)

    check_against_eager("loss", got, eager_loss, {"pred": pred}, dtypes[1])
    assert not got[1][mask == 0].any()


def test_a_mask_of_nothing_gives_zero():
    images, pred = torch.rand(2, 3, 8, 8, device="cuda"), torch.rand(2, 4, 48, device="cuda", requires_grad=True)
    loss = masked_patch_loss(images, pred, torch.zeros(2, 4, device="cuda"), 4, empty="zero")
    loss.backward()
    assert loss.item() == 0.0 and not pred.grad.any()


# --- the same bits, no sync, graphs -------------------------------------------------------------------------------------------


def step(images, weight, token, pred_weight, seed):
    """A step of an MAE without its transformer: mask, loss, gradients."""
    n, width = len(images), weight.shape[0]
    ids = mask_ids((n, 196), 0.75, seed=seed)
    tokens = embed_visible(images, weight, ids.ids_keep)
    full = restore_tokens(tokens, ids.ids_restore, token, num_prefix_tokens=0)
    again = gather_tokens(full, ids.ids_mask) @ pred_weight
    pred = full.view(n, 196, width) @ pred_weight
    loss = masked_patch_loss(images, pred, ids.mask, 16, norm_pix_loss=True)
    loss = loss + masked_patch_loss(images, again, None, 16, ids=ids.ids_mask, loss="l1")
    return (ids.mask, loss, *torch.autograd.grad(loss, [weight, token, pred_weight]))


def step_inputs(n=16, dtype=torch.float32, width=64):
    images = torch.rand(n, 3, 224, 224, device="cuda", dtype=dtype)
    weight = (torch.randn(width, 3, 16, 16, device="cuda", dtype=dtype) / 30).requires_grad_()
    token = torch.randn(1, 1, width, device="cuda", dtype=dtype).requires_grad_()
    pred_weight = (torch.randn(width, 768, device="cuda", dtype=dtype) / 8).requires_grad_()
    return images, weight, token, pred_weight, torch.zeros((), dtype=torch.int64, device="cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_run_gives_the_same_bits(dtype):
    inputs = step_inputs(dtype=dtype)
    repeated, wide = torch.randint(0, 9, (16, 300), device="cuda"), torch.randn(16, 9, 500, device="cuda", dtype=dtype)
    wide.requires_grad_()

    def everything():
        taken = gather_tokens(wide, repeated)
        return (*step(*inputs), *torch.autograd.grad(taken.sin().sum(), wide))

    first = everything()
    for _ in range(20):
        assert all(torch.equal(a, b) for a, b in zip(first, everything(), strict=True))


def test_nothing_waits_for_the_gpu():
    inputs = step_inputs()
    step(*inputs)
    with no_sync():
        step(*inputs)


@pytest.mark.parametrize("op, count", [("mask_ids", 1), ("gather_tokens", 1), ("restore_tokens", 1), ("patch_loss", 2)])
def test_how_many_launches(op, count, kernels_of):
    images, *_, seed = step_inputs(4)
    ids = mask_ids((4, 196), seed=seed)
    x, token, pred = (torch.randn(shape, device="cuda") for shape in ((4, 50, 64), (1, 1, 64), (4, 196, 768)))
    few = (ids.ids_keep % 50).contiguous()
    calls = {
        "mask_ids": lambda: mask_ids((4, 196), seed=seed),
        "gather_tokens": lambda: gather_tokens(x, few),
        "restore_tokens": lambda: restore_tokens(x, ids.ids_restore, token),
        "patch_loss": lambda: masked_patch_loss(images, pred, ids.mask, 16),
    }
    names = kernels_of(calls[op])
    assert len(names) == count, names


def test_replays_of_a_graph_draw_new_masks():
    """The seed is read on the device, so each replay equals the step outside the graph with the same seed."""
    inputs = step_inputs()
    seed, outside = inputs[-1], torch.zeros_like(inputs[-1])
    graph, captured_step = record(lambda: step(*inputs))
    losses = set()
    for turn in range(5):
        seed.fill_(turn)
        outside.fill_(turn)
        graph.replay()
        expected = step(*inputs[:-1], outside)
        assert torch.equal(captured_step[0], expected[0])
        torch.testing.assert_close(captured_step[1:], expected[1:], rtol=1e-3, atol=1e-5)  # matrix products come before these
        losses.add(captured_step[1].item())
    assert len(losses) == 5


def test_on_a_stream_of_its_own():
    x, noise = torch.randn(64, 196, 256, device="cuda"), torch.rand(64, 196, device="cuda")
    expected = random_masking(x, 0.75, noise=noise)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        got = random_masking(x, 0.75, noise=noise)
    stream.synchronize()
    assert same(got, expected)
