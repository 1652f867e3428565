"""``similarity_limited`` in Triton's interpreter, on the CPU; run as ``test_similarity.py`` is, whose fixtures it shares."""

import pytest
import torch
import torch.nn.functional as F

from fastssl.kernels import similarity_chunked as chunked
from fastssl.kernels import similarity_limited as kernels
from fastssl.reference import similarity_limited as reference
from fastssl.testing.compare import assert_no_worse
from fastssl.testing.similarities import gap_limits
from tests.without_gpu.interpreted.common import BF16, F16, F32, as_stored, dscale_terms, make, registered, wide

NAMES = ("dx", "dy", "dbias", "dscale")


def arguments(n, m, d, dtype=F32, scale=10.0, **kwargs):
    """The op's arguments, thresholds and limits that no rounding reaches; and upstream gradients g (n,)."""
    args, g = make(n, m, d, dtype, **kwargs)
    factor = 1.0 if args["scale_factor"] is None else args["scale_factor"].item()
    s = factor * scale * (args["x"].double() @ args["y"].double().T)
    s = s if args["y_bias"] is None else s + args["y_bias"]
    limit = gap_limits(s)
    limit[:3] = torch.tensor([torch.inf, -torch.inf, torch.nan])[:n]
    return args | {"threshold": (-gap_limits(-s)).float(), "limit": limit.float()}, g


def call(module, args, g, scale, need):
    positional = (args["x"], args["y"], scale, args["scale_factor"], args["x_id"], args["y_id"], args["y_bias"])
    lse, rank, *state = module.similarity_limited_fwd(*positional, args["threshold"], args["limit"])
    gradients = as_stored(module, args["x"], module.similarity_limited_bwd(g, *state, *positional, args["limit"], need))
    return {"lse": lse, "rank": rank, **dict(zip(NAMES, gradients, strict=True))}


def check(args, g, scale=10.0, need=(True,) * 4):
    need = (*need[:2], need[2] and args["y_bias"] is not None, need[3])
    ours, plain = (call(module, args, g, scale, need) for module in (kernels, reference))
    truth = call(reference, wide(args), g.double(), scale, need)
    for name, value in ours.items():
        assert value.shape == plain[name].shape and value.dtype == plain[name].dtype and value.is_contiguous(), name
        if name == "rank":
            assert torch.equal(value, truth[name])
        else:
            size = dscale_terms(args, g, scale) if name == "dscale" and value.numel() else 0.0
            assert_no_worse(name, value, plain[name], truth[name], args["x"].dtype, size)
    return ours


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(chunked, "chunk_shape", lambda n, m: (min(n, 24), min(m, 40)))


@pytest.mark.parametrize("dtype, shape", [(F32, (30, 45, 33)), (BF16, (33, 5, 20)), (F16, (1, 45, 3))], ids=str)
def test_types_and_shapes(dtype, shape):
    check(*arguments(*shape, dtype, ids="third", factor=True, bias=True))
    check(*arguments(*shape, dtype))


@pytest.mark.parametrize("scale", [-10.0, 1e5])
def test_scales(scale):
    check(*arguments(30, 50, 16, scale=scale), scale)


@pytest.mark.parametrize("k", range(4))
def test_each_gradient_alone(k):
    got = check(*arguments(30, 50, 16, bias=True, ids="all"), need=tuple(j == k for j in range(4)))
    assert [got[name].numel() > 0 for name in NAMES] == [j == k for j in range(4)]


@pytest.mark.parametrize("change", [torch.inf, -torch.inf])
def test_a_pair_that_changes_sides_has_a_weight_of_at_most_one(change):
    args, _ = arguments(30, 50, 16, bias=True)
    positional = [args[name] for name in ("x", "y", "scale_factor", "x_id", "y_id", "y_bias")]
    positional.insert(2, 40.0)
    _, _, state, peak = kernels.similarity_limited_fwd(*positional, None, 4.0 * args["limit"])
    for i in (0, 1, 4, 20):
        g = F.one_hot(torch.tensor(i), 30).float()
        other = torch.full((30,), change)
        p = kernels.similarity_limited_bwd(g, state, peak, *positional, other, (False, False, True, False))[2]
        assert p.isfinite().all() and p.min() >= 0.0 and p.max() <= 1.0 + 1e-6
        assert p[peak[i]] > 0 if peak[i] >= 0 else (p == 0).all()


def test_float64_is_served_by_plain_pytorch():
    args, g = arguments(6, 5, 4)
    ops = registered("similarity_limited", "similarity_limited_fwd", "similarity_limited_bwd")
    ours, want = (call(module, wide(args), g.double(), 3.0, (True, True, False, True)) for module in (ops, reference))
    assert all(torch.equal(ours[k], want[k]) for k in want)
