"""``fastssl.patch`` on a library of the tests' own, with solo-learn's names: other versions, what is refused, dicts of classes."""

import importlib
import pickle
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

import fastssl
from fastssl.compat.solo import mae_loss_func
from tests.compat.test_patch import MaskedAutoencoderViT, original

pytestmark = pytest.mark.usefixtures("one_thread")

DINO = "num_prototypes, warmup_teacher_temp, teacher_temp, warmup_teacher_temp_epochs, num_epochs, student_temp=0.1"
DINO += ", num_large_crops=2, center_momentum=0.9"
LOSSES = {
    "dino": f"class DINOLoss:\n    def __init__(self, {DINO}): ...",
    "barlow": "def barlow_loss_func(z1, z2, lamb=5e-3, scale_loss=0.025): ...",
    "byol": "def byol_loss_func(p, z, simplified=True): ...",
    "mae": "def mae_loss_func(imgs, pred, mask, patch_size, norm_pix_loss=True): ...",
    "mocov2plus": "def mocov2plus_loss_func(query, key, queue, temperature=0.1): ...",
    "mocov3": "def mocov3_loss_func(query, key, temperature=0.2): ...",
    "nnclr": "def nnclr_loss_func(nn, p, temperature=0.1): ...",
    "simclr": "def simclr_loss_func(z, indexes, temperature=0.1): return 'theirs'",
    "simsiam": "def simsiam_loss_func(p, z, simplified=True): ...",
    "swav": "def swav_loss_func(preds, assignments, temperature=0.1): ...",
    "vicreg": "def vicreg_loss_func(z1, z2, sim_loss_weight=25.0, var_loss_weight=25.0, cov_loss_weight=1.0): ...",
}
RATES = "lr, momentum=0, dampening=0, weight_decay=0, nesterov=False, eta=1e-3, eps=1e-8, clip_lr=False, exclude_bias_n_norm=False"
LARS = f"class LARS:\n    def __init__(self, params, {RATES}): ..."
BASE = "from solo.utils.lars import LARS\nTABLE = {'lars': LARS}\nclass BaseMethod:\n    _OPTIMIZERS = {'sgd': None, 'lars': LARS}"
MOMENTUM = "class MomentumUpdater: ...\ndef initialize_momentum_params(online_net, momentum_net): ..."


@pytest.fixture
def solo(tmp_path, monkeypatch):
    """A package with solo-learn's names; ``solo(simclr="...")`` writes it with another source for a loss."""

    def write(**losses):
        files = {f"losses/{name}.py": source for name, source in (LOSSES | losses).items()}
        files |= {
            "utils/momentum.py": MOMENTUM,
            "utils/lars.py": LARS,
            "methods/base.py": BASE,
            "methods/mae.py": "from solo.losses.mae import mae_loss_func as loss",
        }
        for name, source in files.items():
            path = tmp_path / "solo" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            for package in (path.parent, path.parent.parent):
                (package / "__init__.py").touch()
            path.write_text(source)
        importlib.invalidate_caches()

    monkeypatch.syspath_prepend(tmp_path)
    yield write
    for name in [name for name in sys.modules if name.partition(".")[0] == "solo"]:
        del sys.modules[name]


def test_solo_methods_that_bound_the_loss_at_import(solo):
    solo()
    method = importlib.import_module("solo.methods.mae")
    before = method.loss
    with fastssl.patch("solo") as patch:
        assert original(method.loss) is mae_loss_func and "solo.methods.mae.loss" in patch.names
        assert sys.modules["solo.utils.momentum"].MomentumUpdater is fastssl.compat.solo.MomentumUpdater
    assert method.loss is before


def test_optimizers_that_a_class_and_a_module_hold_by_name(solo):
    solo()
    base = importlib.import_module("solo.methods.base")
    theirs = base.LARS
    with fastssl.patch("solo") as patch:
        assert base.TABLE["lars"] is base.BaseMethod._OPTIMIZERS["lars"] is base.LARS is fastssl.compat.solo.LARS
        assert {"solo.methods.base.BaseMethod._OPTIMIZERS['lars']", "solo.methods.base.TABLE['lars']"} <= set(patch.names)
    assert base.TABLE["lars"] is base.BaseMethod._OPTIMIZERS["lars"] is base.LARS is theirs


def test_what_a_drop_in_refuses_the_library_still_does(solo):
    solo()
    simclr = importlib.import_module("solo.losses.simclr")
    with fastssl.patch("solo"):
        assert simclr.simclr_loss_func(torch.ones(2, 2, dtype=torch.int64), None) == "theirs"
        assert simclr.simclr_loss_func(torch.eye(2), torch.zeros(2).long()).isfinite()
        assert pickle.loads(pickle.dumps(simclr.simclr_loss_func)) is simclr.simclr_loss_func


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "def simclr_loss_func(z1, z2, temperature=0.1): ...",
            r"must take \(z, indexes, temperature\).*takes \(z1, z2, temperature\)",
        ),
        ("", "simclr_loss_func is missing"),
    ],
)
def test_another_version_is_refused_before_anything_is_swapped(solo, source, message):
    solo(simclr=source)
    method = importlib.import_module("solo.methods.mae")
    before = method.loss
    with pytest.raises(ValueError, match=message):
        fastssl.patch("solo")
    assert method.loss is before is sys.modules["solo.losses.mae"].mae_loss_func


def test_a_library_that_lacks_another_one_says_which(solo):
    solo(mae="import a_package_that_nobody_has")
    with pytest.raises(ModuleNotFoundError, match="a_package_that_nobody_has"):
        fastssl.patch("solo")


@pytest.mark.parametrize("name", ["solo", "timm", "lightly"])
def test_a_library_that_is_not_installed(monkeypatch, name):
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=f"is {name} installed"):
        fastssl.patch(name)


def test_refusals():
    for args, error, match in (
        (("mmselfsup",), ValueError, "'FlagEmbedding', 'barlow', 'contrastors', 'dino', 'dinov2', .*'swav', .*, got 'mmselfsup'"),
        ((None,), ValueError, "got None"),
        (("mae",), TypeError, "needs the class"),
        (("mae", MaskedAutoencoderViT()), TypeError, "needs the class"),
        (("mae", ModuleType("empty")), TypeError, "needs the class"),
        (("mae", nn.Linear), ValueError, "MaskedAutoencoderViT.forward_decoder is missing"),
        (("timm", nn.Linear), TypeError, "target is for 'barlow', 'dino', .*, 'supcon', 'vicreg', 'swav' alone"),
        (("moco", nn.Linear), ValueError, "MoCo._dequeue_and_enqueue is missing"),
        (("moco",), TypeError, "needs the class MoCo"),
        (("mocov3", nn.Linear), ValueError, "MoCo.contrastive_loss is missing"),
        (("supcon",), TypeError, "needs the class SupConLoss"),
        (("swav", nn.Linear), TypeError, "needs the module main_swav"),
        (("swav", ModuleType("empty")), ValueError, "main_swav.distributed_sinkhorn is missing"),
    ):
        with pytest.raises(error, match=match):
            fastssl.patch(*args)
