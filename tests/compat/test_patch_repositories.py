"""``fastssl.patch`` on what is on no index: modules of the tests' own with the names of DINOv2, DINOv3 and of SwAV's script."""

import sys
from argparse import Namespace
from types import ModuleType

import pytest
import torch
from torch.testing import assert_close

import fastssl
from fastssl.compat import swav

pytestmark = pytest.mark.usefixtures("one_thread")

LATE = "student_temp=0.1, center_momentum=0.9"
SOURCES = {
    "dinov2": {
        "dino_clstoken_loss": f"class DINOLoss:\n    def __init__(self, out_dim, {LATE}): ...",
        "ibot_patch_loss": f"class iBOTPatchLoss:\n    def __init__(self, patch_out_dim, {LATE}): ...",
        "koleo_loss": "class KoLeoLoss:\n    def __init__(self): ...",
    }
}
SOURCES["dinov3"] = SOURCES["dinov2"] | {
    "gram_loss": "class GramLoss:\n    def __init__(self, apply_norm=True, img_level=True, remove_neg=True, "
    "remove_only_teacher_neg=False): ...",
    "ibot_patch_loss": SOURCES["dinov2"]["ibot_patch_loss"] + "\nclass SinkhornKnoppTeacher: ...",
    "koleo_loss": SOURCES["dinov2"]["koleo_loss"]
    + "\nclass KoLeoLossDistributed:\n    def __init__(self, topk=1, loss_group_size=None): ...",
}


@pytest.mark.parametrize("name", SOURCES)
def test_patch_of_a_package_of_these_names(name, monkeypatch):
    holder = ModuleType(f"{name}.loss")
    for path in (name, holder.__name__):
        monkeypatch.setitem(sys.modules, path, holder)
    for file, source in SOURCES[name].items():
        module = ModuleType(f"{name}.loss.{file}")
        exec(source, vars(module))
        for key, value in list(vars(module).items()):
            if isinstance(value, type):
                value.__module__ = module.__name__
                setattr(holder, key, value)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    before = dict(vars(holder))
    with fastssl.patch(name) as patch:
        drop_ins = sys.modules[f"fastssl.compat.{name}"]
        classes = {key for key, value in before.items() if isinstance(value, type)}
        assert classes == {*drop_ins.__all__}
        assert all(getattr(holder, key) is getattr(drop_ins, key) for key in classes)
        assert f"{name}.loss.dino_clstoken_loss.DINOLoss" in patch.names
    assert dict(vars(holder)) == before


def test_patch_of_the_script_of_swav():
    script = ModuleType("main_swav")
    exec("def distributed_sinkhorn(Q, nmb_iters):\n    return 'theirs'", vars(script))
    Q = torch.exp(torch.randn(6, 40)).t()
    with fastssl.patch("swav", script) as patch:
        assert patch.names == ("main_swav.distributed_sinkhorn",)
        assert_close(script.distributed_sinkhorn(Q, 3), swav.distributed_sinkhorn(Q, 3))
        assert script.distributed_sinkhorn(Q.bool(), 3) == "theirs"  # ours refuses it
    assert script.distributed_sinkhorn(Q, 3) == "theirs"


def test_patch_of_the_script_of_swav_as_it_is_now():
    """Its function takes logits, and reads the rest from the global ``args``, which ``main`` sets after the patch."""
    script = ModuleType("main_swav")
    exec("import torch\n@torch.no_grad()\ndef distributed_sinkhorn(out):\n    return 'theirs'", vars(script))
    before = script.distributed_sinkhorn
    out = torch.randn(40, 6, requires_grad=True)
    with fastssl.patch("swav", script) as patch:
        assert patch.names == ("main_swav.distributed_sinkhorn",)
        assert fastssl.patch("swav", script).names == ()
        for epsilon, passes in ((0.05, 3), (0.3, 1)):
            script.args = Namespace(epsilon=epsilon, sinkhorn_iterations=passes)
            found, Q = script.distributed_sinkhorn(out), torch.exp(out.detach() / epsilon).t()
            assert_close(found, swav.distributed_sinkhorn(Q, passes))
            assert not found.requires_grad
        assert script.distributed_sinkhorn(out > 0) == "theirs"  # ours refuses it
    assert script.distributed_sinkhorn is before
    for arguments, error, match in (
        ((out[0], 0.05, 3), TypeError, "sinkhorn_codes: out must be a tensor \\(B, K\\), got \\(6,\\)"),
        ((out, 0.0, 3), ValueError, "epsilon must be above 0"),
        ((out, 0.05, 0), ValueError, "sinkhorn_iterations must be"),
    ):
        with pytest.raises(error, match=match):
            swav.sinkhorn_codes(*arguments)
