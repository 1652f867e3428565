"""The build: what serves each op, the fallback, what an import loads, what compiled graphs are kept under, the machine code of the
CUDA kernels."""

import compileall
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastssl.info import report
from fastssl.ops._register import _C, OWNERS, contracts_digest, why_not_host
from tests.support import machine_code

ROOT = Path(__file__).resolve().parents[2]


def python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=os.environ | environment
    )
    return done.stdout


LIST_OPS = ("ema_update_", "adamw_", "lars_")


def sources_for_the_cpu(op: str) -> list[str]:
    """The files of csrc that registered an op for the CPU, also those that another one has overridden."""
    return re.findall(r"^CPU\b.*: registered at \S*csrc/(\w+/\w+\.cpp)", torch._C._dispatch_dump(f"fastssl::{op}"), re.M)


def test_info_names_the_owner_of_every_op_and_why():
    text = report()
    for op, owners in OWNERS.items():
        assert re.search(rf"^{op} +{re.escape(owners['CPU'])} ", text, re.M)
    assert "CPU" in text and torch.__version__ in text


@pytest.mark.skipif(_C is None, reason="C++ kernels are not built")
def test_the_kernels_tell_how_they_were_built():
    build = _C.build_info()
    assert build["compiler"].startswith(("gcc", "clang")) and build["cxx_standard"] >= 20
    assert tuple(map(int, build["torch"].split(".")[:2])) >= (2, 11)
    assert _C.isa() == _C.isas()[-1] and all(owners["CPU"] == "C++" for owners in OWNERS.values())
    with pytest.raises(ValueError, match=r"set_isa: expected one of .*, got mmx"):
        _C.set_isa("mmx")


def test_importing_loads_no_triton_no_training_and_no_gpu():
    heavy = ("triton", "lightning", "kornia", "sklearn", "matplotlib")
    out = python(f"import sys, torch, fastssl; print([m for m in {heavy!r} if m in sys.modules], torch.cuda.is_initialized())")
    assert out.strip() == "[] False"


def test_compiled_graphs_on_disk_are_those_of_these_ops(tmp_path):
    """torch's key of such a graph holds no shapes of our ops' results: where another version of fastssl left the graph, it would be
    called with this version's ops. So the contracts' digest is part of every key, beside the user's own tag."""
    sources = "".join(file.read_text() for file in [*(ROOT / "fastssl/ops").glob("*.py"), ROOT / "fastssl/checks.py"])
    assert set(re.findall(r"^ *(?:from|import) (fastssl[.\w]*)", sources, re.M)) == {"fastssl.checks"}, "beyond the digest"
    shutil.copytree(ROOT / "fastssl/ops", tmp_path / "ops")
    shutil.copy(ROOT / "fastssl/checks.py", tmp_path)
    assert contracts_digest(tmp_path) == contracts_digest(ROOT / "fastssl")
    tag = python(
        "import torch, fastssl\n"
        "from torch._inductor.codecache import FxGraphHashDetails\n"
        "print(FxGraphHashDetails(None, [], {}, []).cache_key_tag)",
        TORCH_COMPILE_CACHE_KEY_TAG="mine",
    )
    assert tag.strip() == f"mine fastssl {contracts_digest(tmp_path)}"
    for file in ("ops/standardize.py", "checks.py"):
        before = contracts_digest(tmp_path)
        (tmp_path / file).write_text((tmp_path / file).read_text().replace("return", "return ", 1))
        assert contracts_digest(tmp_path) != before


def test_an_installation_of_bytecode_alone_has_a_digest_too(tmp_path):
    shutil.copytree(ROOT / "fastssl/ops", tmp_path / "ops")
    shutil.copy(ROOT / "fastssl/checks.py", tmp_path)
    compileall.compile_dir(tmp_path, quiet=1, legacy=True)
    for file in [*tmp_path.rglob("*.py")]:
        file.unlink()
    digest = contracts_digest(tmp_path)
    (tmp_path / "checks.pyc").write_bytes(b"")
    assert contracts_digest(tmp_path) != digest


#: Without the library, then without the module beside it.
NO_KERNELS = (
    "import torch\n"
    "def refuse(path): raise OSError('it is kept from this process')\n"
    "torch.ops.load_library = refuse\n"
    "import fastssl, warnings\n"
)
NO_HOST = "import sys; sys.modules['fastssl._C'] = None\nimport torch, fastssl\n"


def test_without_the_kernels_the_reference_serves_the_cpu():
    out = python(
        f"{NO_KERNELS}"
        "from fastssl.ops._register import OWNERS, why_not_cpp\n"
        "from fastssl.testing.inputs import two_views\nfrom fastssl.testing.contrastive import nt_xent as eager_nt_xent\n"
        "from fastssl.info import report\n"
        "assert why_not_cpp and all(o['CPU'] == 'reference' for o in OWNERS.values())\n"
        "assert report().count(why_not_cpp) == 1 and report().count('CPU: no C++, see above') == len(OWNERS)\n"
        "views = [t.requires_grad_() for t in two_views((20, 8)).values()]\n"
        "loss = [f(*views) for f in (fastssl.nt_xent, eager_nt_xent)]\n"
        "grads = [torch.autograd.grad(l, views) for l in loss]\n"
        "torch.testing.assert_close(loss[0], loss[1]); torch.testing.assert_close(grads[0], grads[1]); print('right')"
    )
    assert out.strip() == "right"


@pytest.mark.skipif(_C is None, reason="C++ kernels are not built")
def test_the_kernels_serve_a_python_or_a_torch_that_the_module_was_not_built_for():
    """Losses by their general way, texts and lists as arguments, an op that refuses, and a tensor in large pages."""
    out = python(
        f"{NO_HOST}"
        "from fastssl import functional as F\n"
        "from fastssl.info import report\n"
        "from fastssl.ops._register import OWNERS\n"
        "from fastssl.reference.masked_latent import masked_latent_fwd\n"
        "from fastssl.testing import contrastive\n"
        "assert all(o['CPU'] == 'C++' for o in OWNERS.values()) and 'none, Python does its work: it is not built' in report()\n"
        "a, b = torch.randn(2, 20, 8, requires_grad=True).unbind()\n"
        "for ours, theirs in ((fastssl.nt_xent, contrastive.nt_xent), (fastssl.info_nce, contrastive.info_nce)):\n"
        "    loss = ours(a, b), theirs(a, b)\n"
        "    torch.testing.assert_close(*loss)\n"
        "    torch.testing.assert_close(*(torch.autograd.grad(each, (a, b)) for each in loss))\n"
        "call = (torch.randn(2, 3, 4), torch.randn(2, 3, 4), None, None, 'smooth_l1', 0.5, True, 1e-6, True)\n"
        "torch.testing.assert_close(torch.ops.fastssl.masked_latent_fwd(*call), masked_latent_fwd(*call))\n"
        "ema, params = [torch.zeros(3), torch.zeros(2, 2)], [torch.ones(3), torch.ones(2, 2)]\n"
        "F.ema_update_(ema, params, momentum=0.75); assert all((t == 0.25).all() for t in ema)\n"
        "from fastssl.reference import adamw, lars\n"
        "from tests.package.test_build import LIST_OPS, sources_for_the_cpu\n"
        "assert [sources_for_the_cpu(op) for op in LIST_OPS] == [['cpu/list_ops.cpp']] * 3\n"
        "decays, copies = [0.1, 0.0], ([], 0.0, None, [], [])\n"
        "adamw_call = (5.0, None, 0.1, torch.tensor(0.2), 0.9, 0.99, 1e-8, decays, *copies)\n"
        "lars_call = (0.1, None, 0.9, decays, 0.001, 1e-8, 0, [1, 0], True, False, *copies)\n"
        "for name, lists, module, rest in (('adamw_', 4, adamw, adamw_call), ('lars_', 3, lars, lars_call)):\n"
        "    ours = [[torch.rand(3), torch.rand(2, 2)] for _ in range(lists)]\n"
        "    theirs = [[t.clone() for t in each] for each in ours]\n"
        "    getattr(torch.ops.fastssl, name)(*ours, *rest); getattr(module, name)(*theirs, *rest)\n"
        "    torch.testing.assert_close(ours, theirs)\n"
        "queue, ptr = torch.zeros(3, 4), torch.tensor([2]); F.queue_push_(queue, ptr, torch.ones(2, 4), layout='kd')\n"
        "assert queue[[0, 2]].all() and not queue[1].any() and ptr.item() == 1\n"
        "try: torch.ops.fastssl.queue_push_(queue, torch.tensor([3]), torch.ones(2, 4), None, None, False, False)\n"
        "except ValueError as error: print(error)\n"
        "x, ids = torch.randn(4, 300, 512), torch.arange(300).flip(0).repeat(4, 1)\n"
        "for _ in range(3): assert torch.equal(F.gather_tokens(x, ids), x.flip(1))\n"
    )
    assert out.strip() == "queue_push_: ptr must be in [0, 3), got 3"


@pytest.mark.skipif(why_not_host is not None, reason="fastssl._C is not in use")
def test_ops_over_lists_are_registered_by_the_module_alone_where_it_is_in_use():
    """To it torch lends the tensors of a list; the library gets new ones at each call."""
    assert [sources_for_the_cpu(op) for op in LIST_OPS] == [["python/list_ops.cpp"]] * 3


@pytest.mark.skipif(_C is None or not sys.platform.startswith("linux"), reason="C++ kernels are not built, or no ELF library")
@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm here")
def test_the_kernels_ask_torch_for_its_stable_interface_alone():
    """Nothing of Python and of torch's C++ interface, but for functions that may be missing, of oneDNN, the BLAS and torch 2.13."""
    words = ["nm", "-D", "--undefined-only", str(ROOT / "fastssl" / "_cpu.so")]
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split("\n")
    wanted = {kind: {name.split("@")[0] for mark, name in map(str.split, filter(None, lines)) if mark == kind} for kind in "Uw"}
    theirs = {name for name in wanted["U"] if not re.match(r"(aoti_)?torch_", name)}
    assert {name for name in theirs if re.match(r"_Py|Py|_?Z?N?K?[0-9]*(2at|3c10|5torch)", name) or "at6native" in name} == set()
    versioned = [name for line in lines if " U " in line and (name := line.split()[-1]).split("@")[0] in theirs]
    assert [name for name in versioned if "@" not in name] == [], "neither torch's nor of a system library with versions"
    optional = {name for name in wanted["w"] if not name.startswith(("_ITM", "__"))}
    assert {re.sub(r"^_ZN2at6native\d+cpublas\d+(brgemm|brgemm_release)E.*", r"\1", name) for name in optional} == {
        "MKL_Set_Num_Threads_Local", "brgemm", "brgemm_release", "dgemm_", "omp_get_max_threads", "omp_set_num_threads", "sgemm_",
        "torch_exception_get_what_without_backtrace",
    }  # fmt: skip


def test_no_cuda_kernel_spills_registers():
    """What ptxas said of every kernel of csrc/cuda for every architecture when it was built."""
    logs = {path.stem: ROOT / "build" / "cuda" / f"{path.name}.o.log" for path in (ROOT / "csrc" / "cuda").glob("*.cu")}
    if not all(log.exists() for log in logs.values()):
        pytest.skip("the CUDA library is not built here")
    architectures = set(re.findall(r"for '(sm_\w+)'", "".join(log.read_text() for log in logs.values())))
    for name, log in logs.items():
        text = log.read_text()
        spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", text)
        assert set(spills) <= {("0", "0")}, (name, spills)
        kernels = set(re.findall(r"Compiling entry function '(\w+)'", text))
        assert all(text.count(f"'{kernel}' for '{arch}'") == 1 for kernel in kernels for arch in architectures)
        assert kernels or "__global__" not in (ROOT / "csrc" / "cuda" / f"{name}.cu").read_text()


def accesses_of(op: str, *kernels: str) -> list[str]:
    """For each element type and kernel its accesses to memory, on one architecture; skips where they cannot be known."""
    built = ROOT / "build" / "cuda" / f"{op}.cu.o"
    sources = [*(ROOT / "csrc").glob("c*/*.*h"), ROOT / "csrc" / "cuda" / f"{op}.cu"]
    if not built.exists() or built.stat().st_mtime < max(path.stat().st_mtime for path in sources):
        pytest.skip("the CUDA library is not built here, or from other sources")
    if machine_code.cuobjdump() is None:
        pytest.skip("cuobjdump is not here")
    built_for = machine_code.images(built)[0]
    found = machine_code.memory_accesses(built, "90" if "90" in built_for else min(built_for))
    chosen = [" ".join(accesses) for name, accesses in found.items() if re.search(rf"\d({'|'.join(kernels)})ILi", name)]
    assert len(chosen) == 3 * len(kernels)
    return chosen


def test_row_copies_have_two_reads_under_way():
    kernels = accesses_of("gather_tokens", "gather_kernel", "scatter_kernel")
    assert all(re.search(r"(LDG\S*\.128 ){2}(STG\S*\.128 ?){2}", accesses) for accesses in kernels), kernels


def test_patches_are_staged_by_whole_groups():
    """Four float32 pixels of each of three channels are read before the first is written to shared memory."""
    kernels = accesses_of("patch_loss", "patch_loss_kernel", "patch_loss_grad_kernel")
    assert all(re.search(r"(LDG\S*\.128 ){3}STS", accesses) for accesses in kernels), kernels


@pytest.mark.skipif(not (ROOT / "fastssl" / "_cuda.so").exists(), reason="the CUDA library is not built here")
@pytest.mark.skipif(torch.version.cuda is not None, reason="loaded on import here")
def test_the_cuda_library_loads_and_registers_its_ops_beside_a_torch_with_cuda(tmp_path):
    """A library has the name of torch's libtorch_cuda.so and the one symbol that only it has, not global to the process."""
    (tmp_path / "stream.c").write_text("int aoti_torch_get_current_cuda_stream(int d, void** s) { *s = 0; return d; }\n")
    name = "libtorch_cuda.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "stream.c", f"-Wl,-soname,{name}", "-o", name], check=True, cwd=tmp_path)
    out = python(
        "import ctypes, torch\n"
        f"theirs = ctypes.CDLL({str(tmp_path / name)!r}, ctypes.RTLD_LOCAL); torch.version.cuda = '99.0'\n"
        "import fastssl; from fastssl.ops._register import OWNERS, why_not_cuda; assert why_not_cuda is None, why_not_cuda\n"
        "print(*(op for op, owners in OWNERS.items() if owners['CUDA'] == 'CUDA C++'))"
    )
    written = {"adamw_", "ema_update_", "lars_", "queue_push_", "mask_ids", "block_mask", "mask_tokens", "visible_positions"}
    written |= {
        f"{op}_{way}" for op in ("gather_tokens", "restore_tokens", "visible_patches", "patch_loss") for way in ("fwd", "bwd")
    }
    assert set(out.split()) == written
