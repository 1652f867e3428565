"""lightly (Lightly AG): ``NTXentLoss(temperature)(z0, z1)`` and ``DCLLoss``. Both normalise, and store 4.2 N^2 floats.

On a GPU their boolean indexing synchronises with the host, so they cannot be captured in a CUDA graph. The same holds for the
pointer of the memory bank, and for LARS, which asks the host whether each norm is zero.

lightly's masks take no noise; one argsort of the given noise replaces the one in which random_token_mask sorts noise of its own.
lightly returns ids only, so a scatter and a second argsort beside it make the mask and ids_restore of random_masking. As in its
MAE, all patches are embedded, the kept tokens are written over mask tokens before the decoder, and the loss takes predictions and
targets of the removed patches.
"""

from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from fastssl.testing.distilled_updates import ITERATIONS, STUDENT_TEMPERATURE, TEACHER_TEMPERATURE
from fastssl.testing.masked_updates import patch_side, sequence
from fastssl.testing.updates import as_module, with_gradients

from . import Peer, after_torchvision, distilled, masked, ready_torchvision


def _loss(name: str, **constants: float):
    ready_torchvision()
    from lightly import loss

    module = getattr(loss, name)(**constants)
    return lambda z0, z1: module(z0, z1)


def _sketch():
    """SIGReg with the directions of the call in place of random ones."""
    ready_torchvision()
    from lightly.loss.lejepa_loss import SIGReg

    def call(z, directions):
        module = SIGReg()
        module._generate_unit_vectors = lambda *_: directions
        return module(z)

    return call


def _ema(momentum: float):
    ready_torchvision()
    from lightly.models.utils import update_momentum

    def bind(state):
        model, average = (as_module(state["model"], state[name]) for name in ("params", "ema"))
        return lambda: update_momentum(model, average, momentum)

    return bind


def _adopt(bank, state) -> None:
    """Gives a memory bank the queue (D, K) of the state, as rows (K, D); the state then holds a view of the bank."""
    bank.bank, bank.bank_ptr = state["queue"].T.contiguous(), state["ptr"]
    state["queue"] = bank.bank.T


def _push():
    ready_torchvision()
    from lightly.models.modules.memory_bank import MemoryBankModule

    def bind(state):
        bank = MemoryBankModule(tuple(reversed(state["queue"].shape)))
        _adopt(bank, state)
        return lambda: bank._dequeue_and_enqueue(state["keys"])  # forward would copy the bank too

    return bind


def _moco_step(temperature: float):
    ready_torchvision()
    from lightly.loss import NTXentLoss

    def bind(state):
        module = NTXentLoss(temperature, memory_bank_size=tuple(reversed(state["queue"].shape)))
        _adopt(module.memory_bank, state)

        def step():
            query = state["query"].detach().requires_grad_()
            value = module(query, state["key"])
            value.backward()
            state["loss"], state["query_grad"] = value.detach(), query.grad

        return step

    return bind


def _larc(lr, momentum, weight_decay, trust_coefficient, eps):
    ready_torchvision()
    from lightly.utils.lars import LARS

    def bind(state):
        options = {"momentum": momentum, "weight_decay": weight_decay, "trust_coefficient": trust_coefficient, "eps": eps}
        return LARS(with_gradients(state), lr=lr, **options).step

    return bind


@lru_cache
def _backbone(side: int, patch: int, width: int):
    """Its masked vision transformer on timm's, without memory, blocks and norm."""
    from lightly.models.modules import MaskedVisionTransformerTIMM
    from timm.models.vision_transformer import VisionTransformer

    with torch.device("meta"):
        vit = VisionTransformer(side, patch, num_classes=0, global_pool="", embed_dim=width, depth=0, num_heads=1)
        vit.norm = nn.Identity()
        return MaskedVisionTransformerTIMM(vit, weight_initialization="skip", pos_embed_initialization="skip")


def _token_mask(given):
    """Ids of kept and removed tokens; the class token, with noise of -1, comes first."""
    noise = F.pad(given["noise"], (1, 0), value=-1.0)
    order, keep = torch.argsort(noise, dim=1), int(given["noise"].shape[1] * (1 - given["mask_ratio"])) + 1
    return {"idx_keep": order[:, :keep], "idx_mask": order[:, keep:]}


def _random_masking(given):
    from lightly.models.utils import get_at_index

    order = torch.argsort(given["noise"], dim=1)
    keep = int(order.shape[1] * (1 - given["mask_ratio"]))
    mask = torch.ones(order.shape, device=order.device).scatter_(1, order[:, :keep], 0.0)
    return {"kept": get_at_index(given["x"], order[:, :keep]), "mask": mask, "ids_restore": torch.argsort(order, dim=1)}


def _embed(given):
    weight = given["weight"]
    module = _backbone(given["images"].shape[2], weight.shape[2], weight.shape[0])
    tensors = {
        "vit.cls_token": given["cls"],
        "vit.pos_embed": given["pos"],
        "vit.patch_embed.proj.weight": weight,
        "vit.patch_embed.proj.bias": given["bias"],
    }
    return {"embedded": functional_call(module, tensors, (given["images"],), {"idx_keep": given["idx_keep"]})}


def _restore(given):
    from lightly.models.utils import repeat_token, set_at_index

    x, pos = given["x"], given["decoder_pos"]
    tokens = repeat_token(given["mask_token"], (len(x), pos.shape[1]))
    return {"restored": set_at_index(tokens, given["idx_keep"], x.type_as(tokens)) + pos}


def _balanced(given):
    from lightly.loss.swav_loss import sinkhorn

    with torch.no_grad():
        targets = sinkhorn(given["teacher"].float(), ITERATIONS, TEACHER_TEMPERATURE)
    return {"loss": -torch.mean(torch.sum(targets * F.log_softmax(given["student"] / STUDENT_TEMPERATURE, dim=1), dim=1))}


@lru_cache
def _dino_loss(columns: int):
    from lightly.loss import DINOLoss

    temperatures = {"warmup_teacher_temp": TEACHER_TEMPERATURE, "teacher_temp": TEACHER_TEMPERATURE}
    return DINOLoss(columns, student_temp=STUDENT_TEMPERATURE, **temperatures)


def _crops(given):
    module = _dino_loss(given["center"].shape[0]).to(given["center"].device)
    module.center = given["center"].view(1, 1, -1)  # which the module replaces after the loss
    return {"loss": module([*given["teacher"]], [*given["student"]], epoch=0)}


def _patch_loss(given):
    from lightly.models.utils import get_at_index, normalize_mean_var, patchify

    ids = given["idx_mask"] - 1
    target = get_at_index(patchify(given["images"], patch_side(given)), ids)
    if given["norm_pix_loss"]:
        target = normalize_mean_var(target)
    return {"loss": nn.MSELoss()(get_at_index(given["pred"], ids), target)}


def _koleo(given):
    from lightly.loss import KoLeoLoss

    return {"loss": KoLeoLoss()(given["z"])}


_DISTILLED = {"soft_targets_sinkhorn": _balanced, "soft_targets_crops": _crops}
_MASKED = {
    "koleo": _koleo,
    "random_masking": _random_masking,
    "embed_visible": _embed,
    "restore_tokens": _restore,
    "patch_loss": _patch_loss,
    "patch_loss_norm": _patch_loss,
    "mae_bundle": sequence(_token_mask, _embed, _restore, _patch_loss),
}
PEER = Peer(
    "lightly",
    {
        "nt_xent": partial(_loss, "NTXentLoss"),
        "dcl": partial(_loss, "DCLLoss"),
        "barlow_twins": partial(_loss, "BarlowTwinsLoss"),
        "vicreg": partial(_loss, "VICRegLoss"),
        "sigreg": _sketch,
        "ema": _ema,
        "queue_push": _push,
        "moco_step": _moco_step,
        "larc": _larc,
        **masked(_MASKED, after_torchvision),
        **distilled(_DISTILLED, after_torchvision),
    },
    distribution="lightly",
    differs={
        "moco": "normalises inside, and its memory bank copies itself and takes the new keys in the same call",
        "mask_ids": "random_token_mask draws its own noise, and returns neither mask nor ids_restore",
    },
    module="lightly",
    max_rows={"cpu": 16384},
)
