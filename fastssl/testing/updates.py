"""The table of state updates: for each update its state, the step, the same in plain PyTorch, and the bytes that it moves.

A state is a dict of tensors and lists of tensors. ``ours`` and ``eager`` take a state and return a step: a call without arguments
that changes the state in place. New tensors that a step makes, such as a loss or a gradient, it puts into the state. In float64 the
result of ``eager`` is the truth; in the dtype of a test its error is what ours is compared with, as in ``cases.py``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl import functional
from fastssl.testing import contrastive

#: Name -> a tensor, a list of tensors, or the name of a model.
State = dict[str, Any]
Step = Callable[[], None]


@dataclass(frozen=True)
class UpdateCase:
    """An update. ``state(shape, dtype, device, seed)`` makes a state, which ``ours`` and ``eager`` take, with the constants.

    ``written`` names the entries that a step changes or makes, ``shared`` those that no step changes. ``bytes(shape, itemsize)``
    counts each element that must be read or written once; ``flops(shape)`` is the least number of FLOPs of the matrix products, 0
    without any. Implementations are compared after ``steps`` steps, since a second step uses what the first one left behind.
    """

    name: str
    state: Callable[..., State]
    ours: Callable[..., Step]
    eager: Callable[..., Step]
    written: tuple[str, ...]
    shared: tuple[str, ...]
    bytes: Callable[[tuple, int], float]
    flops: Callable[[tuple], float] = lambda shape: 0.0
    steps: int = 2


def vit_shapes(width: int, depth: int, patch: int = 16, tokens: int = 197, classes: int = 1000) -> dict[str, tuple[int, ...]]:
    """Name -> shape of a vision transformer with one class token."""

    def linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}

    def norm(name: str) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (width,), f"{name}.bias": (width,)}

    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, width), "pos_embed": (1, tokens, width)}
    shapes |= {"patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,)}
    for block in (f"blocks.{i}" for i in range(depth)):
        shapes |= (
            norm(f"{block}.norm1") | linear(f"{block}.attn.qkv", 3 * width, width) | linear(f"{block}.attn.proj", width, width)
        )
        shapes |= (
            norm(f"{block}.norm2") | linear(f"{block}.mlp.fc1", 4 * width, width) | linear(f"{block}.mlp.fc2", width, 4 * width)
        )
    return shapes | norm("norm") | linear("head", classes, width)


def resnet_shapes(blocks: tuple[int, ...] = (3, 4, 6, 3), width: int = 64, classes: int = 1000) -> dict[str, tuple[int, ...]]:
    """Name -> shape of a residual network with bottleneck blocks."""

    def conv(names: tuple[str, str], rows: int, columns: int, size: int) -> dict[str, tuple[int, ...]]:
        weight, norm = names
        return {f"{weight}.weight": (rows, columns, size, size), f"{norm}.weight": (rows,), f"{norm}.bias": (rows,)}

    shapes = conv(("conv1", "bn1"), width, 3, 7)
    before = width
    for stage, count in enumerate(blocks, 1):
        inner, outer = width << (stage - 1), 4 * width << (stage - 1)
        for i in range(count):
            block = f"layer{stage}.{i}"
            shapes |= conv((f"{block}.conv1", f"{block}.bn1"), inner, before, 1)
            shapes |= conv((f"{block}.conv2", f"{block}.bn2"), inner, inner, 3)
            shapes |= conv((f"{block}.conv3", f"{block}.bn3"), outer, inner, 1)
            if i == 0:
                shapes |= conv((f"{block}.downsample.0", f"{block}.downsample.1"), outer, before, 1)
            before = outer
    return shapes | {"fc.weight": (classes, before), "fc.bias": (classes,)}


MODELS = {
    "tiny": vit_shapes(24, 2, patch=4, tokens=17, classes=10),
    "resnet50": resnet_shapes(),
    "vit_b16": vit_shapes(768, 12),
    "vit_l16": vit_shapes(1024, 24),
}


def elements(model: str) -> int:
    """Number of parameters."""
    return sum(torch.Size(shape).numel() for shape in MODELS[model].values())


def as_module(model: str, tensors: list[Tensor]) -> nn.Module:
    """Modules that are nested as the names of the model's parameters say, with these tensors as their parameters' memory."""
    root = nn.Module()
    for name, tensor in zip(MODELS[model], tensors, strict=True):
        *path, leaf = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
    return root


def copied(state: State, names=None, dtype: torch.dtype | None = None) -> State:
    """The state with copies of the entries in ``names`` (None: of all). Copies of floating tensors are in ``dtype``."""

    def one(tensor: Tensor) -> Tensor:
        return tensor.detach().to(dtype if dtype and tensor.dtype.is_floating_point else tensor.dtype, copy=True)

    def any_of(value):
        return value if isinstance(value, str) else one(value) if isinstance(value, Tensor) else [one(t) for t in value]

    return {name: any_of(value) if names is None or name in names else value for name, value in state.items()}


def _model_state(*names: str, shadow: bool = False):
    """Makes states with a list of normal numbers for each name, in the shapes of a model; a shape is (model,)."""

    def state(shape, dtype=torch.float32, device="cpu", seed=0) -> State:
        found: State = {"model": shape[0]}
        for k, name in enumerate(names):
            generator = torch.Generator(device).manual_seed(seed + k)
            new = (torch.randn(s, generator=generator, device=device) for s in MODELS[shape[0]].values())
            found[name] = [t.mul_(0.05).to(dtype) for t in new]
        if shadow:
            found["shadow"] = [torch.zeros_like(t, dtype=torch.bfloat16) for t in found[names[0]]]
        return found

    return state


def _queue(shape, dtype, device, seed) -> State:
    """queue (D, K), unit columns, and ptr (1,), one push before the end."""
    n, k, d = shape
    queue = F.normalize(torch.randn(d, k, generator=torch.Generator().manual_seed(seed + 9)), dim=0)
    return {"queue": queue.to(device, dtype), "ptr": torch.tensor([k - n], device=device)}


def _rows(shape, dtype, device, seed) -> Tensor:
    return torch.randn(shape[0], shape[2], generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def push_state(shape, dtype=torch.float32, device="cpu", seed=0) -> State:
    """shape (N, K, D): keys (N, D), queue (D, K), ptr (1,)."""
    return {"keys": F.normalize(_rows(shape, dtype, device, seed), dim=1)} | _queue(shape, dtype, device, seed)


def moco_state(shape, dtype=torch.float32, device="cpu", seed=0) -> State:
    """shape (N, K, D): query, key (N, D) as the heads leave them, not of unit length; queue (D, K), ptr (1,)."""
    query, noise = (_rows(shape, dtype, device, seed + k) for k in range(2))
    return {"query": query, "key": query + 0.5 * noise} | _queue(shape, dtype, device, seed)


def ours_ema(state: State, momentum: float) -> Step:
    return lambda: functional.ema_update_(state["ema"], state["params"], momentum, shadow=state.get("shadow"))


@torch.no_grad()
def lerp_(state: State, momentum: float) -> None:
    torch._foreach_lerp_(state["ema"], state["params"], 1.0 - momentum)
    if "shadow" in state:
        torch._foreach_copy_(state["shadow"], state["ema"])


def eager_ema(state: State, momentum: float) -> Step:
    return lambda: lerp_(state, momentum)


def ours_push(state: State) -> Step:
    return lambda: functional.queue_push_(state["queue"], state["ptr"], state["keys"])


@torch.no_grad()
def push(queue: Tensor, ptr: Tensor, keys: Tensor) -> None:
    """Writes keys (N, D) to the columns of a queue (D, K), from ptr (1,) on and round its end, without a host sync."""
    places = (ptr + torch.arange(len(keys), device=keys.device)) % queue.shape[1]
    queue.index_copy_(1, places, keys.t())
    ptr.copy_((ptr + len(keys)) % queue.shape[1])


def eager_push(state: State) -> Step:
    return lambda: push(state["queue"], state["ptr"], state["keys"])


def moco_step(state: State, loss: Callable[[Tensor, Tensor], Tensor], enqueue: Callable[[Tensor], None], early=True) -> Step:
    """One training step of MoCo without its encoders: unit rows, ``loss(query, key)``, backward and the push.

    ``early``: the push comes before the backward.
    """

    def step():
        query = state["query"].detach().requires_grad_()
        q, k = F.normalize(query, dim=1), F.normalize(state["key"], dim=1)
        value = loss(q, k)
        if early:
            enqueue(k)
        value.backward()
        if not early:
            enqueue(k)
        state["loss"], state["query_grad"] = value.detach(), query.grad

    return step


def ours_moco(state: State, temperature: float) -> Step:
    return moco_step(
        state,
        lambda q, k: cast("Tensor", functional.moco_loss(q, k, state["queue"], temperature)),  # without statistics
        lambda k: functional.queue_push_(state["queue"], state["ptr"], k),
    )


def eager_moco(state: State, temperature: float) -> Step:
    return moco_step(
        state,
        lambda q, k: contrastive.moco(q, k, state["queue"], temperature),
        lambda k: push(state["queue"], state["ptr"], k),
    )


def with_gradients(state: State) -> list[Tensor]:
    """The parameters of the state, each with its gradient, as an optimizer takes them."""
    for p, g in zip(state["params"], state["grads"], strict=True):
        p.requires_grad_().grad = g
    return state["params"]


def ours_lars(form: str) -> Callable[..., Step]:
    def bind(state: State, **constants) -> Step:
        from fastssl.optim import LARS

        return LARS(with_gradients(state), form=form, **constants).step

    return bind


def eager_lars(form: str) -> Callable[..., Step]:
    """LARS one tensor at a time. moco_v3: tensors of one dimension take plain steps without decay; larc: all rates are adapted."""

    def ratio(p, g, d, trust_coefficient, weight_decay, eps):
        size = d.norm() if form == "moco_v3" else g.norm() + weight_decay * p.norm() + eps
        steps = (p.norm() > 0) & ((d if form == "moco_v3" else g).norm() > 0)
        return torch.where(steps, trust_coefficient * p.norm() / size, torch.ones_like(size))

    def bind(state: State, lr, momentum, weight_decay, trust_coefficient, eps) -> Step:
        params, grads = state["params"], state["grads"]
        momenta = [torch.zeros_like(p) for p in params]

        @torch.no_grad()
        def step():
            for p, g, mu in zip(params, grads, momenta, strict=True):
                d = g
                if form == "larc" or p.ndim > 1:
                    d = g.add(p, alpha=weight_decay)
                    d = d.mul(ratio(p, g, d, trust_coefficient, weight_decay, eps))
                mu.mul_(momentum).add_(d)
                p.add_(mu, alpha=-lr)

        return step

    return bind


def torch_adamw(state: State, lr, beta1, beta2, eps, weight_decay, ema_momentum=None, **how) -> Step:
    """torch.optim.AdamW, then the average of the new parameters where the state holds one."""
    optimizer = torch.optim.AdamW(with_gradients(state), lr, (beta1, beta2), eps, weight_decay, **how)
    if "ema" not in state:
        return optimizer.step

    def step():
        optimizer.step()
        lerp_(state, ema_momentum)

    return step


def eager_adamw(state: State, **constants) -> Step:
    return torch_adamw(state, **constants, foreach=True)


def ours_adamw(state: State, lr, beta1, beta2, eps, weight_decay, ema_momentum=None) -> Step:
    from fastssl.optim import AdamW

    params = with_gradients(state)
    options = {"lr": lr, "betas": (beta1, beta2), "eps": eps, "weight_decay": weight_decay, "capturable": params[0].is_cuda}
    if "ema" in state:
        options |= {"ema": state["ema"], "ema_momentum": ema_momentum}
    return AdamW(params, **options).step


def _list_case(name, state, ours, eager, written, shared, words, extra_bytes=0) -> UpdateCase:
    """``words`` elements of the dtype are read or written for each parameter, and ``extra_bytes``."""
    return UpdateCase(
        name, state, ours, eager, written, shared, lambda s, itemsize: (words * itemsize + extra_bytes) * elements(s[0])
    )


_PUSHED = ("queue", "ptr")
_EMA = ("ema", "params")
_WEIGHTS = ("params", "grads")
UPDATE_CASES = {
    case.name: case
    for case in (
        _list_case("ema", _model_state(*_EMA), ours_ema, eager_ema, ("ema",), ("params",), 3),
        _list_case("ema_shadow", _model_state(*_EMA, shadow=True), ours_ema, eager_ema, ("ema", "shadow"), ("params",), 3, 2),
        UpdateCase(
            "queue_push", push_state, ours_push, eager_push, _PUSHED, ("keys",), lambda s, itemsize: 2 * s[0] * s[2] * itemsize
        ),
        UpdateCase(
            "moco_step",
            moco_state,
            ours_moco,
            eager_moco,
            ("loss", "query_grad", *_PUSHED),
            ("query", "key"),
            bytes=lambda s, itemsize: (6 * s[0] + s[1]) * s[2] * itemsize,
            flops=lambda s: 2 * 2 * s[0] * s[1] * s[2],
            steps=1,  # in a second one the keys would meet themselves in the queue: a gradient of differences, lost in 16 bits
        ),
        _list_case("lars", _model_state(*_WEIGHTS), ours_lars("moco_v3"), eager_lars("moco_v3"), ("params",), ("grads",), 7),
        _list_case("larc", _model_state(*_WEIGHTS), ours_lars("larc"), eager_lars("larc"), ("params",), ("grads",), 7),
        _list_case("adamw", _model_state(*_WEIGHTS), ours_adamw, eager_adamw, ("params",), ("grads",), 7),
        _list_case("adamw_ema", _model_state(*_WEIGHTS, "ema"), ours_adamw, eager_adamw, ("params", "ema"), ("grads",), 9),
    )
}
