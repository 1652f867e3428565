"""Odd values of arguments, and ways to spoil a tensor, each made from the random numbers of the call: it can be made again."""

import decimal
import fractions
import math

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from .table import Maker
from .values import usual

NUMBERS = (0, 1, -1, 2, 3, 7, 2**31 - 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 2**64, 10**400)
NUMBERS += (0.0, -0.0, 0.5, 1.0, 1.5, -0.5, 5e-324, 1e-38, 1e-8, 1e30, 1e300, math.nan, math.inf, -math.inf)
NUMBERS += (True, False, 1j, np.float32(0.5), np.float64(0.5), np.int64(1), np.bool_(True), np.uint8(200), np.float64(np.nan))
NUMBERS += (decimal.Decimal("0.5"), fractions.Fraction(1, 2))
WORDS = ("", "x", "mean", "sum", "none", "cpu", "meta", "cuda", "cuda:99", "no such", b"mean", "MEAN")
THINGS = (
    lambda m: None,
    lambda m: [],
    lambda m: (),
    lambda m: {},
    lambda m: [1],
    lambda m: (2, 3),
    lambda m: (0.3, 0.6),
    lambda m: (0.6, 0.3),
    lambda m: (1.5, 2.0, 3.0),
    lambda m: (math.nan, 1.0),
    lambda m: [None],
    lambda m: ["x", "y"],
    lambda m: (10**400, 10**400),
    lambda m: (2**62, 2**62),
    lambda m: {"a": 1},
    lambda m: {1, 2},
    lambda m: range(3),
    lambda m: iter([1, 2]),
    lambda m: len,
    lambda m: object,
    lambda m: Ellipsis,
    lambda m: slice(2),
    lambda m: torch.float32,
    lambda m: torch.device("meta"),
    lambda m: torch.device("cpu", 0),
    lambda m: torch.Size([2, 3]),
    lambda m: torch.Generator().manual_seed(3),
    lambda m: nn.Identity(),
    lambda m: np.zeros((2, 3), np.float32),
    lambda m: np.array(0.5),
    lambda m: np.array([]),
    lambda m: np.array(["a"]),
    lambda m: torch.tensor(0.5),
    lambda m: torch.tensor([0.5]),
    lambda m: torch.tensor(0.5, dtype=torch.float64, requires_grad=True),
    lambda m: torch.tensor(0.5, dtype=torch.bfloat16),
    lambda m: torch.tensor([1.0, 2.0]),
    lambda m: torch.tensor(math.nan),
    lambda m: torch.tensor(math.inf),
    lambda m: torch.tensor(0.0),
    lambda m: torch.tensor(-0.5),
    lambda m: torch.tensor(1e300, dtype=torch.float64),
    lambda m: torch.tensor(1e-300, dtype=torch.float64),
    lambda m: torch.tensor(2),
    lambda m: torch.tensor([[3]]),
    lambda m: torch.tensor(-(2**63)),
    lambda m: torch.tensor(True),
    lambda m: torch.tensor(0.5 + 1j),
    lambda m: torch.tensor([]),
    lambda m: torch.zeros(0, 4),
    lambda m: torch.zeros(2, 0, 3),
    lambda m: torch.zeros((), device="meta"),
    lambda m: torch.zeros(2, 3, device="meta"),
    lambda m: torch.rand(2, 3, generator=m.generator).to_sparse(),
    lambda m: torch.tensor([[0.5]]).to_sparse(),
    lambda m: torch.eye(2).to_sparse_csr(),
    lambda m: nn.Parameter(torch.tensor(0.7)),
    lambda m: _fake(torch.tensor(0.5)),
    lambda m: _inference(torch.tensor(0.5)),
    lambda m: [torch.zeros(2), torch.zeros(2)],
)


class Subclass(Tensor):
    """A tensor of a user's own class."""


def _fake(x: Tensor) -> Tensor:
    return FakeTensorMode().from_tensor(x.detach())


def _inference(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.detach().clone()


def _floating(x: Tensor, change) -> Tensor:
    """``change`` of a plain float tensor; of any other the tensor itself."""
    return change(x) if x.is_floating_point() and x.numel() else x


def _with(x: Tensor, value: float, m: Maker) -> Tensor:
    """One element replaced."""
    if not x.numel():
        return x
    y = x.detach().clone()
    y.view(-1)[m.randrange(y.numel())] = value
    return y.requires_grad_(x.requires_grad)


def _kept(x: Tensor, y: Tensor) -> Tensor:
    return y.requires_grad_(x.requires_grad) if y.is_floating_point() else y


def _spaced(x: Tensor) -> Tensor:
    """The same values, every second element of memory."""
    y = x.detach().new_zeros((*x.shape, 2))
    y[..., 0] = x.detach()
    return _kept(x, y[..., 0].detach())


def _offset(x: Tensor) -> Tensor:
    y = x.detach().new_zeros(x.numel() + 3)
    y[3:] = x.detach().reshape(-1)
    return _kept(x, y[3:].view(x.shape).detach())


def _turned(x: Tensor) -> Tensor:
    """The same values, dimensions of memory in reverse order."""
    order = list(range(x.dim()))[::-1]
    return _kept(x, x.detach().permute(order).contiguous().permute(order).detach())


def _negated(x: Tensor) -> Tensor:
    return torch._neg_view(x.detach().neg()) if x.is_floating_point() else x


def _single_stride(x: Tensor) -> Tensor:
    """The same values; dimensions of one entry have a huge stride."""
    y = x.detach().contiguous()
    strides = [2**40 if size == 1 else stride for size, stride in zip(y.shape, y.stride(), strict=True)]
    return _kept(x, y.as_strided(y.shape, strides))


# Values stay as they are: the right result is that of the plain tensor.
LAYOUTS = {
    "every second element": _spaced,
    "an offset": _offset,
    "reversed strides": _turned,
    "a negated view": _negated,
    "huge strides of single entries": _single_stride,
    "a subclass": lambda x: x.detach().as_subclass(Subclass),
    "a parameter": lambda x: nn.Parameter(x.detach(), requires_grad=x.is_floating_point()),
    "with gradient": lambda x: x.detach().clone().requires_grad_(x.is_floating_point()),
    "not a leaf": lambda x: x.detach().clone().requires_grad_() * 1 if x.is_floating_point() else x,
    "without gradient": lambda x: x.detach(),
    "an inference tensor": _inference,
}
VALUES = {
    "one NaN": lambda x, m: _floating(x, lambda x: _with(x, math.nan, m)),
    "one inf": lambda x, m: _floating(x, lambda x: _with(x, math.inf, m)),
    "one -inf": lambda x, m: _floating(x, lambda x: _with(x, -math.inf, m)),
    "one -0.0": lambda x, m: _floating(x, lambda x: _with(x, -0.0, m)),
    "one huge": lambda x, m: _floating(x, lambda x: _with(x, min(torch.finfo(x.dtype).max / 4, 1e17), m)),
    "all NaN": lambda x, m: _kept(x, x.detach() * math.nan) if x.is_floating_point() else x,
    "zeros": lambda x, m: _kept(x, torch.zeros_like(x)),
    "ones": lambda x, m: _kept(x, torch.ones_like(x)),
    "denormals": lambda x, m: _kept(x, x.detach() * torch.finfo(x.dtype).tiny) if x.is_floating_point() else x,
    "large": lambda x, m: _kept(x, x.detach() * 100) if x.is_floating_point() else x + 100,
    "tiny": lambda x, m: _kept(x, x.detach() * 1e-3) if x.is_floating_point() else x - 1,
    "far": lambda x, m: x if x.is_floating_point() or x.dtype == torch.bool else x - 2**40,
    "extreme": lambda x, m: _extreme(x, m),
}
SHAPES = {
    "empty": lambda x: x[:0] if x.dim() else x[None][:0],
    "no columns": lambda x: x[..., :0] if x.dim() else x,
    "one row": lambda x: x[:1] if x.dim() else x,
    "a row fewer": lambda x: x[:-1] if x.dim() else x,
    "a column fewer": lambda x: x[..., :-1] if x.dim() else x,
    "one row more": lambda x: torch.cat([x, x[:1]]) if x.dim() else x,
    "a dimension fewer": lambda x: x[0] if x.dim() and x.shape[0] else x,
    "a dimension more": lambda x: x[None],
    "a dimension more at the end": lambda x: x[..., None],
    "the first row for all": lambda x: x[:1].expand(x.shape) if x.dim() and x.shape[0] else x,
    "the first column for all": lambda x: x[..., :1].expand(x.shape) if x.dim() and x.shape[-1] else x,
    "transposed": lambda x: x.transpose(0, -1) if x.dim() else x,
    "flat": lambda x: x.reshape(-1),
    "thrice": lambda x: x.repeat(3, *[1] * (x.dim() - 1)) if x.dim() else x,
}
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64, torch.bool, torch.uint8, torch.int8)
DTYPES += (torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn)
KINDS = {
    "sparse": lambda x: x.detach().to_sparse(),
    "sparse rows": lambda x: x.detach().to_sparse_csr() if x.dim() == 2 else x.detach().to_sparse(),
    "mkldnn": lambda x: x.detach().float().to_mkldnn(),
    "nested": lambda x: torch.nested.nested_tensor(list(x.detach().float().unbind())) if x.dim() > 1 and len(x) else x[None],
    "jagged": lambda x: torch.nested.nested_tensor([x.detach().float(), x.detach().float()], layout=torch.jagged) if x.dim() else x,
    "meta": lambda x: x.detach().to("meta"),
    "fake": _fake,
    "a conjugated view": lambda x: x.detach().float().to(torch.complex64).conj(),
    "the imaginary part of a conjugate": lambda x: (x.detach().float() * (1 - 1j)).conj().imag,
    "NumPy": lambda x: x.detach().float().numpy(),
    "a list": lambda x: x.detach().tolist(),
    "a tensor in a list": lambda x: [x],
    "twice in a list": lambda x: [x, x],
    "shape": lambda x: x.shape,
}


def _extreme(x: Tensor, m: Maker) -> Tensor:
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool or not x.numel():
        return x
    info = torch.iinfo(x.dtype)
    y = x.clone()
    y.view(-1)[m.randrange(y.numel())] = m.choice((info.min, info.max, info.max - 1, -1 if info.min else 0))
    return y


def spoiled_tensor(m: Maker, x: Tensor) -> tuple[str, object]:
    """What was done, and the spoiled tensor."""
    if found := m.spoiled(x):
        return found
    table = m.choice((LAYOUTS, VALUES, VALUES, SHAPES, SHAPES, DTYPES, KINDS))
    if table is DTYPES:
        dtype = m.choice(DTYPES)
        return str(dtype), x.detach().to(dtype)
    how = m.choice(list(table))
    if table is VALUES:
        return how, table[how](x, m)
    if table is SHAPES:
        return how, _kept(x, table[how](x.detach()).detach())
    return how, table[how](x)


def odd(m: Maker) -> tuple[str, object]:
    kind = m.choice((NUMBERS, NUMBERS, WORDS, THINGS, THINGS))
    value = m.choice(kind)
    if kind is THINGS:
        value = value(m)
    return "odd", value


def spoil(m: Maker, arguments: dict) -> str:
    """Changes one of the arguments, and says which and how."""
    name = m.choice(list(arguments))
    value = arguments[name]
    others = [other for other, found in arguments.items() if other != name and isinstance(found, Tensor | list)]
    if others and isinstance(value, Tensor | list) and m.random() < 0.06:
        other = m.choice(others)
        arguments[name] = arguments[other]
        return f"{name} is {other}"
    if isinstance(value, Tensor) and usual(value) and m.random() < 0.85:
        how, arguments[name] = spoiled_tensor(m, value)
    elif isinstance(value, list) and value and isinstance(value[0], Tensor) and m.random() < 0.85:
        at = m.randrange(len(value))
        how, one = spoiled_tensor(m, value[at]) if m.random() < 0.8 else m.choice((("odd", None), ("again", value[0])))
        arguments[name] = [one if i == at else t for i, t in enumerate(value)]
        how = f"[{at}] {how}"
    else:
        how, arguments[name] = odd(m)
    return f"{name}: {how}"
