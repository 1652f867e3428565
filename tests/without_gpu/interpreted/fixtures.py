"""Fixtures of the interpreted tests: what Triton 3.6's interpreter does otherwise than a GPU, or slowly, and small tiles.

In ttsem (``python -m tests.races``) nothing of Triton's interpreter is used, and its mends do nothing.
"""

import math
import os
import types

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

from fastssl.kernels import similarity_backward, similarity_forward
from fastssl.kernels import similarity_chunked as chunked
from fastssl.kernels import similarity_cross as cross_kernels
from fastssl.kernels.host import tensors
from fastssl.kernels.tiles import plan
from fastssl.kernels.tiles.config import TileConfig

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def product_of_float32(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """c + a b (m, n) of float32, the same bits wherever an entry lies and in whatever shape, as a GPU's FMA units give it, which
    add up along k one by one. NumPy's order depends on CPU and shape, which EXACT tiles need not bear."""
    return (c + np.matmul(a, b, dtype=np.float64)).astype(np.float32)


@pytest.fixture(autouse=True)
def dots(monkeypatch):
    """Triton 3.6's interpreter keeps bfloat16 as uint16, and multiplies those integers in tl.dot: widen them first. Those of
    float32 have the same bits in every shape."""
    if not INTERPRETED:
        return
    dot = interpreter.InterpreterBuilder.create_dot

    def as_on_a_gpu(self, a, b, c, *rest):
        if a.dtype.scalar == tl.bfloat16:
            a, b = (self.cast_impl(t, tl.float32) for t in (a, b))
        elif a.dtype.scalar == tl.float32:
            return interpreter.TensorHandle(product_of_float32(a.data, b.data, c.data), c.dtype.scalar)
        return dot(self, a, b, c, *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", as_on_a_gpu)


@pytest.fixture(autouse=True)
def language_once(monkeypatch):
    """Triton 3.6's interpreter replaces its language anew at every call of a function inside a kernel, a third of all time: here it
    does so once a launch, for kernels and for those functions of the language that are Triton code themselves."""
    if not INTERPRETED:
        return
    replace = interpreter._patch_lang
    both = types.SimpleNamespace(__globals__={"tl": tl, "core": tl.core})
    monkeypatch.setattr(interpreter, "_patch_lang", lambda fn: replace(both))
    inside = lambda self, *args, **kwargs: self.rewrite()(*args, **kwargs)  # noqa: E731
    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", inside)


@pytest.fixture(autouse=True, scope="session")
def cheap_types():
    """Triton 3.6's interpreter makes the types and shapes of each result anew, half of all time: here each is made once. And it
    looks for overflows of integers, only to forget what it found (``InterpreterOptions.debug`` is off)."""
    if not INTERPRETED:
        yield
        return
    core, block_type, numpy_type = tl.core, tl.core.block_type.__init__, interpreter._get_np_dtype
    blocks, shapes, numpy_types = {}, {}, {}

    def init_block(self, element_ty, shape):
        key = str(element_ty), tuple(getattr(each, "value", each) for each in shape)
        if key not in blocks:
            block_type(self, element_ty, list(key[1]))
            blocks[key] = dict(self.__dict__)
        self.__dict__.update(blocks[key], element_ty=element_ty)

    def init_tensor(self, handle, type):
        sizes = tuple(type.shape.values) if type.is_block() else ()
        if sizes not in shapes:
            shapes[sizes] = core.constexpr(math.prod(sizes)), core.tuple([core.constexpr(size) for size in sizes])
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.numel, self.shape = shapes[sizes]

    def numpy_type_once(dtype):
        name = dtype.scalar.name
        if name not in numpy_types:
            numpy_types[name] = numpy_type(dtype.scalar)
        return numpy_types[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core.block_type, "__init__", init_block)
        patch.setattr(core.tensor, "__init__", init_tensor)
        patch.setattr(interpreter, "_get_np_dtype", numpy_type_once)
        patch.setattr(interpreter.interpreter_builder, "options", interpreter.InterpreterOptions(sanitize_overflow=False))
        yield


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Memory that nobody wrote is NaN, so an element that a kernel forgets shows."""
    empty = torch.empty

    def poisoned(*args, **kwargs):
        t = empty(*args, **kwargs)
        return t.fill_(float("nan") if t.is_floating_point() else -77)

    monkeypatch.setattr(torch, "empty", poisoned)
    monkeypatch.setattr(tensors, "batched", False)


@pytest.fixture
def tiles(monkeypatch):
    """Small tiles, so that small shapes have many; a given number of splits; with or without the bounds of the columns."""

    def use(block_m=32, block_n=16, splits=None, bounds=True):
        monkeypatch.setattr(plan, "pick_config", lambda *args: TileConfig(block_m, block_n, 4, 2))
        for module in (similarity_forward, similarity_backward, cross_kernels):
            monkeypatch.setattr(module, "pays", lambda rows, columns: bounds)
        if splits is not None:

            def pick(rows, columns, *_, block=block_n, parts=splits):
                length = triton.cdiv(triton.cdiv(columns, block), parts) * block
                return triton.cdiv(columns, length), length

            monkeypatch.setattr(plan, "pick_splits", pick)
            two_groups = lambda rows, columns, *_: (*pick(0, rows, block=block_m, parts=2), *pick(0, columns))  # noqa: E731
            monkeypatch.setattr(cross_kernels, "pick_groups", two_groups)

    return use


@pytest.fixture(params=["", "unlucky"])
def products(request, monkeypatch):
    """The vendor's products of chunks as they come, and each with every result moved by up to one unit in the last place."""
    if request.param:
        mm, gen = chunked.mm, torch.Generator().manual_seed(0)

        def unlucky(a, b):
            s = mm(a, b)
            up, down = torch.randint(0, 2, (2, *s.shape), generator=gen).bool()
            toward = torch.where(up, torch.inf, torch.where(down, -torch.inf, s))
            return torch.nextafter(s, toward)

        monkeypatch.setattr(chunked, "mm", unlucky)
