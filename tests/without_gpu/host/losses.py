"""What the host does for a GPU, without one: arguments specialised by their values, kernels compiled for sm_90 by the JIT, launches
packed by Triton's compiled launcher. ``test_host.py`` runs this file in a process of its own.

A stub answers for libcuda and runs nothing, so results are whatever lay in memory. CPU tensors stand for a GPU's: the losses,
their autograd and the launchers see real shapes, strides and addresses, on a device of 132 multiprocessors.
"""

import atexit
import ctypes
import importlib
import os
import pkgutil
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import triton
from triton.backends.nvidia.driver import CudaDriver, CudaLauncher
from triton.runtime import JITFunction

from fastssl import kernels
from fastssl.functional import moco_loss, similarity_lse
from fastssl.kernels import (
    koleo,
    masked_latent,
    normalize,
    sampled_info_nce,
    sigmoid_pair,
    sigreg,
    similarity,
    similarity_cross,
    similarity_limited,
    softplus_sum,
    sparse_adam,
    unit_columns,
    word_pairs,
)
from fastssl.kernels.host import device, launch
from fastssl.kernels.host.device import DeviceProperties
from fastssl.kernels.tiles import plan, terms
from fastssl.kernels.tiles.config import TileConfig
from fastssl.loss.parts import one_call
from fastssl.optim import SparseAdam
from fastssl.testing.cases import CASES
from fastssl.testing.compile import disassembly, resources, serialised
from tests.support.rotation import of_today

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
NVIDIA = Path(triton.__file__).parent / "backends/nvidia"
KERNELS = [importlib.import_module(module.name) for module in pkgutil.walk_packages(kernels.__path__, f"{kernels.__name__}.")]

#: Modules of kernels that ``distillation.py`` launches.
ELSEWHERE = {"sinkhorn", "soft_cross_entropy", "soft_rows"}

LAUNCHES: list[tuple[str, tuple[int, int, int]]] = []  # kernel and grid, in order
BUILT: list[str] = []  # each specialisation: kernel, registers, bytes spilled, shared memory, and what is wrong with it


def _load_stub() -> None:
    """libcuda.so.1 of this process, by its soname."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    library = Path(folder) / "libcuda.so.1"
    source = Path(__file__).with_name("cuda_driver_stub.c")
    command = ["gcc", "-shared", "-fPIC", "-w", f"-I{NVIDIA / 'include'}", source, "-o", library, "-Wl,-soname,libcuda.so.1"]
    subprocess.run(command, check=True)
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    os.environ["TRITON_LIBCUDA_PATH"] = folder


class Launcher(CudaLauncher):
    def __init__(self, source, metadata):
        super().__init__(source, metadata)
        self.name = source.fn.__name__

    def __call__(self, x, y, z, *rest):
        super().__call__(x, y, z, *rest)
        LAUNCHES.append((self.name, (x, y, z)))


class Driver(CudaDriver):
    """A Hopper with one stream."""

    def __init__(self):
        super().__init__()
        utils, self.launcher_cls = self.utils, Launcher

        def load(name, cubin, shared, device):
            compiled = SimpleNamespace(asm={"cubin": cubin})
            registers, spilled = resources(compiled)
            faults = "FAULT: spills" * (spilled > 0) + "FAULT: waits after each wgmma" * serialised(disassembly(compiled))
            BUILT.append(f"{name}: {registers} registers, {spilled} B spilled, {shared} B shared {faults}")
            return utils.load_binary(name, cubin, shared, device)

        self.utils = SimpleNamespace(**{name: getattr(utils, name) for name in dir(utils) if not name.startswith("_")})
        self.utils.load_binary = load
        self.get_current_device = lambda: 0
        self.get_device_capability = lambda device: (9, 0)
        self.get_current_stream = lambda device: 0


def _serve_the_cpu() -> torch.library.Library:
    """The launchers for the CPU key, in the place of the C++ kernels."""
    library = torch.library.Library("fastssl", "IMPL")
    for module, names in (
        (similarity, ("similarity_fwd", "similarity_one_pass", "similarity_bwd")),
        (similarity_cross, ("similarity_cross_bwd",)),
        (similarity_limited, ("similarity_limited_fwd", "similarity_limited_bwd")),
        (sigmoid_pair, ("sigmoid_pair",)),
        (normalize, ("normalize_pair_fwd", "normalize_pair_bwd")),
        (softplus_sum, ("softplus_sum_fwd", "softplus_sum_bwd")),
        (masked_latent, tuple(f"masked_latent_{way}" for way in ("fwd", "one_pass", "bwd"))),
        (koleo, ("koleo_rows", "koleo_fwd", "koleo_bwd")),
        (sampled_info_nce, ("sampled_info_nce_fwd", "sampled_info_nce_bwd")),
        (sigreg, ("sigreg_sums", "sigreg_loss", "sigreg_bwd")),
        (unit_columns, ("unit_columns",)),
        (word_pairs, ("word_pairs_fwd", "word_pairs_rows", "word_pairs_table")),
        (sparse_adam, ("sparse_adam_",)),
    ):
        for name in names:
            library.impl(name, getattr(module, name), "CPU", allow_override=True)
    no_logits = lambda *args: similarity_cross.similarity_cross_fwd(*args[:-1], 0)  # noqa: E731  a GPU keeps none
    library.impl("similarity_cross_fwd", no_logits, "CPU", allow_override=True)
    return library


@pytest.fixture(scope="module", autouse=True)
def hopper():
    _load_stub()
    triton.runtime.driver.set_active(Driver())
    library = _serve_the_cpu()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "checked", True)
        patch.setattr(device, "CPU", DeviceProperties(90, 132))
        patch.setattr(one_call, "_C", None)  # on a GPU every loss goes through its operations
        yield library


@pytest.fixture
def tf32():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def not_compiled(monkeypatch):
    """A launch is noted by its name, and its kernel is not compiled."""
    monkeypatch.setattr(launch, "planned", False)
    monkeypatch.setattr(JITFunction, "run", lambda kernel, *_, grid, **__: LAUNCHES.append((kernel.fn.__name__, grid)))


def train(case, shape, dtype, seed=0) -> list:
    """Forward and backward; what was launched."""
    LAUNCHES.clear()
    inputs = {name: t.requires_grad_() for name, t in case.inputs(shape, dtype, seed=seed).items()}
    out = case.ours(**inputs)
    torch.autograd.grad(out.sum(), list(inputs.values()))
    return LAUNCHES.copy()


def _faulty(since: int) -> list[str]:
    return [kernel for kernel in BUILT[since:] if "FAULT" in kernel]


# Whole and ragged, one split and many, ids, bias, learned scale, the gain of float16, widths of a tile and beyond, single elements.
STEPS = [
    ("nt_xent", (512, 128), BF16),
    ("nt_xent", (8192, 128), BF16),
    ("nt_xent", (65536, 128), BF16),
    ("similarity_two_sided", (257, 300, 96), F16),
    ("similarity_two_sided", (1, 1, 1), BF16),
    ("similarity_two_sided", (70, 90, 300), BF16),
    ("similarity_symmetric", (131, 0, 768), BF16),
    ("similarity_one_pass", (300, 0, 256), BF16),
    ("clip", (1000, 128), BF16),
    ("similarity_cross", (70, 90, 300), BF16),
    ("similarity_cross", (4500, 1000, 320), BF16),
    ("similarity_limited", (257, 300, 96), F16),
    ("info_nce_passages", (300, 768), BF16),
    ("siglip_grouped", (1000, 128), F16),
    ("siglip", (70, 300), BF16),
    ("masked_latent", (64, 768), BF16),
    ("masked_latent_weighted", (9, 5000), F16),
    ("koleo", (256, 1024), BF16),
    ("koleo", (9, 5000), F16),
    ("sampled_info_nce", (70, 90, 256), BF16),
    ("sampled_info_nce", (9, 4, 3000), F16),
    ("word_pairs", (70, 90, 300), BF16),
    ("word_pairs", (9, 4, 5000), F16),
    ("sigreg", (600, 128), F16),
    ("lejepa", (60, 40), F32),
]


@pytest.mark.parametrize(
    "name, shape, dtype", of_today(STEPS, 8), ids=lambda p: "x".join(map(str, p)) if isinstance(p, tuple) else str(p)
)
def test_a_step_compiles_without_faults_and_other_values_compile_nothing(name, shape, dtype):
    before = len(BUILT)
    launched = train(CASES[name], shape, dtype)
    assert launched and _faulty(before) == []
    built = len(BUILT)
    assert train(CASES[name], shape, dtype, seed=1) == launched and BUILT[built:] == []


@pytest.mark.parametrize("width", [100, 300])
def test_a_step_of_sparse_adam(width):
    """The number of the step and of its rows is no constant of the kernel. The stub runs nothing, so the values stay."""
    table = torch.zeros(50, width, requires_grad=True)
    optimizer = SparseAdam([table], 0.1)
    built = []
    for rows in (7, 12, 1):
        table.grad = torch.sparse_coo_tensor(torch.arange(rows)[None], torch.ones(rows, width), table.shape, is_coalesced=True)
        LAUNCHES.clear()
        built.append(len(BUILT))
        optimizer.step()
        assert [name for name, _ in LAUNCHES] == ["sparse_adam_kernel"]
    assert _faulty(built[0]) == [] and built[1] == len(BUILT)


def test_tf32(tf32):
    before = len(BUILT)
    assert train(CASES["nt_xent"], (300, 128), F32)
    assert _faulty(before) == []


def test_the_specialised_backward(monkeypatch):
    tile, usual = TileConfig(128, 64, 8, 3, specialised=True), plan.pick_config
    monkeypatch.setattr(plan, "pick_config", lambda name, *rest: tile if name == "bwd plain" else usual(name, *rest))
    before = len(BUILT)
    assert "similarity_narrow_bwd_kernel" in dict(train(CASES["clip"], (8192, 128), BF16))
    assert _faulty(before) == []


def test_a_scale_is_no_constant_of_a_kernel():
    x, y = torch.randn(512, 128).bfloat16(), torch.randn(700, 128).bfloat16()
    similarity_lse(x, y, scale=1.0)
    before = len(BUILT)
    for scale in (0.0, 16.0, 1 / 0.07):
        similarity_lse(x, y, scale=scale)
    assert BUILT[before:] == []


def test_batches_of_a_size_that_tiles_divide_share_their_kernels():
    x, y = torch.randn(4096, 128).bfloat16(), torch.randn(2048, 128).bfloat16()
    similarity_lse(x[:1024], y)
    before = len(BUILT)
    for rows in (1280, 2048, 3968):
        similarity_lse(x[:rows], y)
    assert BUILT[before:] == []


def test_a_queue_stored_by_columns_is_read_as_it_lies_and_counted():
    query, key, queue = torch.randn(256, 128).bfloat16(), torch.randn(256, 128).bfloat16(), torch.randn(128, 4096).bfloat16()
    LAUNCHES.clear()
    before = len(BUILT)
    moco_loss(query.requires_grad_(), key, queue, return_stats=True)[0].backward()
    summed = {"softplus_sum_fwd_kernel", "softplus_sum_bwd_kernel"}
    assert {name for name, _ in LAUNCHES} == {"similarity_fwd_kernel", "merge_kernel"} | summed
    assert _faulty(before) == []


def test_a_launch_that_no_device_takes_is_refused():
    """The stub does look: the second dimension of a grid ends at 65,535."""
    x = torch.zeros(16)
    kernel, arguments = terms.row_terms_kernel, (*(x,) * 6, *(None,) * 6, x, 16, 1, 0, 0, False, 4096)
    kernel[(1, 65535)](*arguments, num_warps=16)
    with pytest.raises(RuntimeError, match="beyond the limits of sm_90"):
        kernel[(1, 65536)](*arguments, num_warps=16)


def _kernels_of(module: ModuleType) -> set[str]:
    mine = {k: v for k, v in vars(module).items() if isinstance(v, JITFunction) and v.fn.__module__ == module.__name__}
    return {name for name in mine if name.endswith("_kernel")}


@pytest.mark.usefixtures("tf32", "not_compiled")
def test_every_kernel_is_launched_by_some_step():
    steps = [*STEPS, ("nt_xent", (16, 8), F32)]
    launched = {name for case, shape, dtype in steps for name, _ in train(CASES[case], shape, dtype)}
    asked_for = {"similarity_narrow_bwd_kernel"}  # by a tuned table alone: test_the_specialised_backward
    asked_for |= {"sparse_adam_kernel"}  # by test_a_step_of_sparse_adam
    mine = [module for module in KERNELS if module.__name__.rpartition(".")[2] not in ELSEWHERE]
    assert launched == set().union(*map(_kernels_of, mine)) - asked_for
