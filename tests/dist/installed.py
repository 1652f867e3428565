"""What every installation must do. `python -m tests.dist check` runs it, beside a part of tests/test_ops.py, in a fresh environment
and in a folder without sources; the environment variable ``FASTSSL_FORM`` says what was installed there."""

import importlib.metadata
import os
import subprocess
import sys
import warnings
from pathlib import Path

import torch

with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    import fastssl

from fastssl.info import report
from fastssl.ops._register import OWNERS, why_not_cpp
from fastssl.testing.contrastive import nt_xent as eager_nt_xent

#: Forms that bring no C++ kernels.
PLAIN = ("pure", "sdist-plain")
FORM = os.environ["FASTSSL_FORM"]
PACKAGE = Path(fastssl.__file__).parent


def test_the_package_is_the_installed_one():
    assert "site-packages" in PACKAGE.parts
    assert importlib.metadata.version("fastssl") == fastssl.__version__


def test_importing_says_nothing():
    assert [str(each.message) for each in said if "fastssl" in str(each.message)] == []


def test_the_cpu_is_served_by_what_the_form_promises():
    wanted = "reference" if FORM in PLAIN else "C++"
    assert {owners["CPU"] for owners in OWNERS.values()} == {wanted}, why_not_cpp
    assert ("left out when fastssl was installed" in str(why_not_cpp)) == (FORM in PLAIN)


def test_the_triton_kernels_are_there():
    kernels = {path.stem for path in (PACKAGE / "kernels").glob("*.py")}
    assert {"similarity", "normalize", "soft_cross_entropy"} <= kernels and (PACKAGE / "kernels" / "tuned").is_dir()


def test_the_command_tells_what_serves_each_operation():
    command = Path(sys.executable).with_name("fastssl")
    done = subprocess.run([command, "info"], capture_output=True, text=True, check=True)
    assert torch.__version__ in done.stdout and "similarity_fwd" in done.stdout
    assert done.stdout.splitlines()[0] == report().splitlines()[0]


def test_a_loss_falls_and_equals_plain_pytorch():
    torch.manual_seed(0)
    views = [torch.randn(32, 16).requires_grad_() for _ in range(2)]
    optimizer = torch.optim.SGD(views, lr=1.0)
    losses = []
    for _ in range(5):
        loss, eager = fastssl.nt_xent(*views), eager_nt_xent(*views)
        torch.testing.assert_close(loss, eager)
        mine, theirs = torch.autograd.grad(loss, views, retain_graph=True), torch.autograd.grad(eager, views)
        torch.testing.assert_close(mine, theirs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
