"""The public functions through the Triton launchers, in Triton's interpreter, and the kernels of ``softplus_sum`` and of
``normalize_pair``."""

import pytest
import torch
from torch import Tensor

import fastssl.functional as functional
import fastssl.loss.sigreg as sigreg_loss
import fastssl.ops.koleo as koleo_op
import fastssl.ops.masked_latent as latent_op
import fastssl.ops.normalize as normalize_op
import fastssl.ops.sampled_info_nce as sampled_op
import fastssl.ops.sigmoid_pair as sigmoid_op
import fastssl.ops.similarity as similarity_op
import fastssl.ops.similarity_cross as cross_op
import fastssl.ops.similarity_limited as limited_op
import fastssl.ops.soft_cross_entropy as soft_op
import fastssl.ops.softplus_sum as softplus_op
import fastssl.ops.unit_columns as columns_op
import fastssl.ops.word_pairs as words_op
from fastssl.kernels import normalize as normalize_kernels
from fastssl.kernels import softplus_sum as softplus_kernels
from fastssl.ops._register import launcher
from fastssl.reference import normalize as normalize_reference
from fastssl.reference import softplus_sum as softplus_reference
from fastssl.testing.cases import CASES
from fastssl.testing.compare import assert_no_worse
from tests.without_gpu.interpreted.common import BF16, F16, F32
from tests.without_gpu.interpreted.fixtures import INTERPRETED


@pytest.fixture
def triton_ops(monkeypatch):
    """The public functions on CPU tensors, through the Triton launchers."""
    for op in ("_fwd", "_one_pass", "_bwd"):
        monkeypatch.setattr(similarity_op, op, launcher("similarity", f"similarity{op}"))
        monkeypatch.setattr(latent_op, op, launcher("masked_latent", f"masked_latent{op}"))
    for op in ("_fwd", "_bwd"):
        monkeypatch.setattr(normalize_op, op, launcher("normalize", f"normalize_pair{op}"))
        monkeypatch.setattr(sampled_op, op, launcher("sampled_info_nce", f"sampled_info_nce{op}"))
        monkeypatch.setattr(softplus_op, op, launcher("softplus_sum", f"softplus_sum{op}"))
        monkeypatch.setattr(cross_op, op, launcher("similarity_cross", f"similarity_cross{op}"))
        monkeypatch.setattr(limited_op, op, launcher("similarity_limited", f"similarity_limited{op}"))
    for op in ("_fwd", "_in_place", "_scale"):
        monkeypatch.setattr(soft_op, op, launcher("soft_cross_entropy", f"soft_cross_entropy{op}"))
    for op in ("_rows", "_fwd", "_bwd"):
        monkeypatch.setattr(koleo_op, op, launcher("koleo", f"koleo{op}"))
    for op in ("_fwd", "_table"):
        monkeypatch.setattr(words_op, op, launcher("word_pairs", f"word_pairs{op}"))
    for op in ("sums", "loss", "bwd"):
        monkeypatch.setattr(sigreg_loss, f"sigreg_{op}", launcher("sigreg", f"sigreg_{op}"))
    monkeypatch.setattr(columns_op, "_unit_columns", launcher("unit_columns", "unit_columns"))
    monkeypatch.setattr(sigmoid_op, "_op", launcher("sigmoid_pair", "sigmoid_pair"))


SMALL = {"similarity_symmetric": (30, 30, 24), "similarity_two_sided": (20, 37, 33), "similarity_one_pass": (21, 37, 24)}
SMALL |= {"similarity_cross": (20, 37, 33), "similarity_limited": (20, 37, 33), "sigmoid_pair": (20, 37, 33)}
SMALL |= {"sampled_info_nce": (9, 12, 33), "word_pairs": (9, 12, 33)}
NOT_TRITON = ("gather_tokens", "restore_tokens", "embed_visible", "patch_loss", "sorted_slices")  # CUDA C++, or plain PyTorch
SMALL |= {name: (17, 20) for name in CASES if name not in SMALL and not name.startswith(NOT_TRITON)} | {"dcl": (9, 12)}


def _value_and_gradients(function, inputs):
    inputs = {k: v.clone().requires_grad_() for k, v in inputs.items()}
    value = function(**inputs)
    weight = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).reshape(value.shape)
    return {"value": value, **dict(zip(inputs, torch.autograd.grad((value * weight).sum(), inputs.values()), strict=True))}


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("name", SMALL)
def test_public_functions(triton_ops, tiles, name, dtype):
    if INTERPRETED and dtype == BF16 and name.startswith(("info_nce", "byol")):
        pytest.skip("the interpreter truncates to bfloat16 where a GPU rounds: 0.3 % of each cosine, much of a small loss")
    tiles()
    case = CASES[name]
    inputs = case.inputs(SMALL[name], dtype=dtype)
    ours = _value_and_gradients(case.ours, inputs)
    eager = _value_and_gradients(case.eager, inputs)
    truth = _value_and_gradients(case.eager, {k: v.double() for k, v in inputs.items()})
    for k in ours:
        assert_no_worse(f"{name} {k}", ours[k], eager[k], truth[k], dtype)


def test_small_loss_keeps_its_digits(triton_ops):
    z = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    loss, truth = functional.nt_xent(z, z, 0.05), functional.nt_xent(z.double(), z.double(), 0.05)
    assert truth < 1e-2 and abs(float(loss) - float(truth)) <= 1e-5 * float(truth)


@pytest.mark.parametrize(("rows", "count"), [(1, 1), (2, 1), (14, 7), (9000, 4500), (4097, 4097), (1800, 600)])
@pytest.mark.parametrize("mean", [True, False])
def test_softplus_sum(rows, count, mean):
    gen = torch.Generator().manual_seed(0)
    lse, positive, g = 30 * torch.randn(rows, generator=gen), 9 * torch.randn(count, generator=gen), torch.tensor(0.7)
    lse[-1] = -torch.inf
    for scale in (3.0, -0.5, 0.0):
        forward, backward = (lse, positive, scale, mean), (g, lse, positive, scale, mean)
        exact = [t.double() if isinstance(t, Tensor) else t for t in backward]
        ours = [softplus_kernels.softplus_sum_fwd(*forward), *softplus_kernels.softplus_sum_bwd(*backward)]
        plain = [softplus_reference.softplus_sum_fwd(*forward), *softplus_reference.softplus_sum_bwd(*backward)]
        truth = [softplus_reference.softplus_sum_fwd(*exact[1:]), *softplus_reference.softplus_sum_bwd(*exact)]
        for name, *three in zip(("total", "dlse", "dpositive"), ours, plain, truth, strict=True):
            assert three[0].dtype == F32 and three[0].shape == three[1].shape
            assert_no_worse(name, *three, F32)


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (33, 130), (2, 5000)], ids=str)
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_normalize_pair(shape, dtype):
    gen = torch.Generator().manual_seed(0)
    a, b = (torch.randn(*shape, generator=gen).to(dtype) for _ in range(2))
    a[-1] = 0  # a clamped row
    b = b.t().contiguous().t() if shape[0] > 2 else b
    ours = normalize_kernels.normalize_pair_fwd(a, b, 1e-12)
    plain = normalize_reference.normalize_pair_fwd(a, b, 1e-12)
    truth = normalize_reference.normalize_pair_fwd(a.double(), b.double(), 1e-12)
    for name, got, eager, want in zip(("z", "norm", "dot"), ours, plain, truth, strict=True):
        assert got.shape == eager.shape and got.dtype == eager.dtype and got.is_contiguous()
        assert_no_worse(name, got, eager, want, dtype)
    z, norm, _ = plain
    dz = torch.randn(z.shape, generator=gen).to(dtype)
    for ddot in (torch.randn(shape[0], generator=gen), torch.ones(1).expand(shape[0])):
        got = normalize_kernels.normalize_pair_bwd(dz, ddot, z, norm, 1e-12)
        eager = normalize_reference.normalize_pair_bwd(dz, ddot, z, norm, 1e-12)
        want = normalize_reference.normalize_pair_bwd(dz.double(), ddot.double(), z.double(), norm.double(), 1e-12)
        for name, *three in zip(("da", "db"), got, eager, want, strict=True):
            live = slice(None, -1) if name == "da" else slice(None)  # the clamped row is divided by 1e-12
            assert_no_worse(name, *(t[live] for t in three), dtype)
            assert torch.equal(three[0][-1].isfinite(), three[1][-1].isfinite())
