"""Arguments of the similarity kernels, a call of each schedule, and the comparison with float64."""

from types import SimpleNamespace

import torch
from torch import Tensor

from fastssl.kernels import similarity as kernels
from fastssl.ops._register import launcher
from fastssl.reference import similarity as reference
from fastssl.testing.compare import assert_no_worse

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
ALL = (True, True, True, True)


def make(n, m, d, dtype=F32, unit=True, ids=None, bias=False, factor=False, seed=0):
    """x (n, d), y (m, d) or None where m is None, and the other arguments; ids: None, "third", "all", "rows"."""
    gen = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.randn(*shape, generator=gen)  # noqa: E731
    rows = lambda k: torch.nn.functional.normalize(rand(k, d), dim=1) if unit else 3.0 * rand(k, d)  # noqa: E731
    x, y = rows(n).to(dtype), None if m is None else rows(m).to(dtype)
    columns = n if m is None else m
    x_id = y_id = None
    if ids == "third":
        x_id, y_id = torch.arange(n) % 3, torch.arange(columns) % 3
    elif ids == "all":
        x_id, y_id = torch.zeros(n, dtype=torch.int32), torch.zeros(columns, dtype=torch.int32)
        x_id[: n // 2] = 1
    elif ids == "pair":
        x_id = y_id = torch.arange(n) % max(1, n // 2) + (1 << 40)
    args = {
        "x": x, "y": y, "scale_factor": torch.tensor([1.7]) if factor else None, "x_id": x_id, "y_id": None if y is None else y_id,
        "y_bias": rand(columns) if bias else None,
    }  # fmt: skip
    return args, torch.rand(n, generator=gen) + 0.1


def as_stored(module, x: Tensor, gradients) -> tuple[Tensor, ...]:
    """Gradients of which the first two are those of rows like x, in the dtype of x, in which a GPU's kernels store them. On a CPU
    plain PyTorch gives them in float32."""
    dx, dy, *others = gradients
    if getattr(module, "__name__", "").startswith("fastssl.reference"):
        dx, dy = dx.to(x.dtype), dy.to(x.dtype)
    return dx, dy, *others


def call(module, args, g, scale, need=ALL, schedules=("fwd", "one_pass", "bwd")) -> dict[str, Tensor]:
    positional = (args["x"], args["y"], scale, args["scale_factor"], args["x_id"], args["y_id"], args["y_bias"])
    threshold = args.get("threshold")
    out = {}
    if "fwd" in schedules:
        out["lse"], out["rank"], *_ = module.similarity_fwd(*positional, threshold)
    if "one_pass" in schedules:
        out["one_pass_lse"], out["mean"], out["one_pass_rank"] = module.similarity_one_pass(*positional, threshold)
    if "bwd" in schedules:
        names = ("dx", "dy", "dbias", "dscale")
        state = module.similarity_fwd(*positional, None)[2:]
        gradients = as_stored(module, args["x"], module.similarity_bwd(g, *state, *positional, need))
        out |= zip(names, gradients, strict=True)
    return out


def registered(file: str, *names: str) -> SimpleNamespace:
    """What serves these ops on a GPU."""
    return SimpleNamespace(**{name: launcher(file, name) for name in names})


def wide(args):
    return {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in args.items()}


def dscale_terms(args, g, scale, dim=1) -> float:
    """Norm of g_i p_ij <x_i, y_j> (1 + |s_ij|), what dscale sums: a unit of rounding in s_ij moves each by one unit of that. dscale
    is a single number, so eager's own error, which may be small by luck, says little."""
    x, y, ids, other = (args[name] for name in ("x", "y", "x_id", "y_id"))
    dot = x.double() @ (x if y is None else y).double().T
    s = dot * scale * (1.0 if args["scale_factor"] is None else args["scale_factor"].item())
    if args.get("y_bias") is not None:
        s = s + args["y_bias"].double()
    if ids is not None:
        s = s.masked_fill(ids[:, None] == (ids if other is None else other), float("-inf"))
    weight = g.double().unsqueeze(dim) * s.softmax(dim).nan_to_num()
    return float((weight * dot * (1.0 + s.masked_fill(weight == 0, 0.0).abs())).norm())


def check(args, g, scale=10.0, need=ALL, **kwargs) -> dict[str, Tensor]:
    need = (need[0], need[1] and args["y"] is not None, need[2] and args["y_bias"] is not None, need[3])
    ours = call(kernels, args, g, scale, need, **kwargs)
    plain = call(reference, args, g, scale, need, **kwargs)
    truth = call(reference, wide(args), g.double(), scale, need, **kwargs)
    for name, value in ours.items():
        assert value.shape == plain[name].shape and value.dtype == plain[name].dtype and value.is_contiguous(), name
        if "rank" in name:
            assert torch.equal(value, truth[name]), name
            continue
        size = dscale_terms(args, g, scale) if name == "dscale" and value.numel() else 0.0
        assert_no_worse(name, value, plain[name], truth[name], args["x"].dtype, size)
    return ours


def random_threshold(n, dtype=F32):
    """With nothing and everything above it, and a NaN."""
    threshold = 4.0 * torch.randn(n, generator=torch.Generator().manual_seed(7))
    threshold[:3] = torch.tensor([torch.inf, -torch.inf, torch.nan])[:n]
    return threshold.to(dtype)
