"""The step of MAE before fastssl, with the operations of the MAE repository, and after, as ``fastssl.methods.MAE``.

Both sides have the same weights. Under autocast, both encoders keep the residual sums in float32, as that of the repository does.
Imports ``clock``, ``common``, ``core.accuracy`` and ``peers``.
"""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.core import accuracy
from benchmarks.peers.mae_repository import FORMS
from benchmarks.steps.clock import Clock
from benchmarks.steps.common import AFTER, BEFORE, Checked, Pair, Setting, Side, finish_step, judged, pictures
from fastssl.methods import MAE, VisionTransformer
from fastssl.methods._timm import run_blocks
from fastssl.optim import AdamW
from fastssl.testing.compare import relative_error

_ADAMW = {"lr": 1e-5, "betas": (0.9, 0.95), "weight_decay": 0.05}
#: Pictures on which the gradients of all weights are compared.
CHECKED_PICTURES = 16
Forward = Callable[[MAE, Tensor, Tensor], Tensor]


def repository_forward(model: MAE, images: Tensor, noise: Tensor) -> Tensor:
    """The loss of the model in the repository's order of operations; images (N, C, H, W), noise (N, L)."""
    backbone, proj = model.backbone, model.backbone.patch_embed.proj
    given = {
        "images": images,
        "noise": noise,
        "mask_ratio": model.mask_ratio,
        "weight": proj.weight,
        "bias": proj.bias,
        "cls": backbone.cls_token,
        "pos": backbone.pos_embed,
        "mask_token": model.mask_token,
        "decoder_pos": model.decoder_pos_embed,
        "norm_pix_loss": model.norm_pix_loss,
    }
    for workload in ("mask_ids", "embed_visible"):
        given |= FORMS[workload](given)
    given["x"] = model.decoder_embed(run_blocks(backbone, given["embedded"]))
    x = FORMS["restore_tokens"](given)["restored"]
    for block in model.decoder_blocks:
        x = block(x)
    given["pred"] = model.predict(x)[:, 1:]
    return FORMS["patch_loss"](given)["loss"]


def our_forward(model: MAE, images: Tensor, noise: Tensor) -> Tensor:
    return model(images, noise=noise)


def build(at: Setting) -> MAE:
    """ViT-B/16 with the decoder of the paper (512 wide, 8 blocks), targets normalised patch by patch."""
    if at.size.small:
        vit = VisionTransformer(at.size.image, 8, 32, 2, 2, class_token=True, positions="sine")
        return MAE(vit, decoder_dim=16, decoder_depth=1, decoder_heads=2, norm_pix_loss=True)
    vit = VisionTransformer(at.size.image, 16, 768, 12, 12, class_token=True, positions="sine")
    return MAE(vit, norm_pix_loss=True)


def watch(model: MAE, clock: Clock) -> None:
    """Makes the model tell the clock when it goes from one part to the next, forward and backward."""

    def enter_encoder(_, args):
        x = args[0].to(torch.promote_types(args[0].dtype, torch.float32))
        clock.border(x, "embed", "encoder")
        return (x,)

    model.backbone.blocks[0].register_forward_pre_hook(enter_encoder)
    model.decoder_embed.register_forward_hook(lambda _, args, out: clock.border(out, "encoder", "restore"))
    model.decoder_blocks[0].register_forward_pre_hook(lambda _, args: clock.border(args[0], "restore", "decoder"))
    model.decoder_pred.register_forward_hook(lambda _, args, out: clock.border(out, "decoder", "loss"))


def mae(at: Setting, clock: Clock) -> Pair:
    """The step of MAE. Part "embed" draws the masks and embeds the patches, part "restore" puts the tokens back in their places."""
    model = build(at).to(at.device)
    images = pictures(at, at.size.batch, 0)

    def side(uses: dict[str, str], forward: Forward, optimize: Callable[..., torch.optim.Optimizer]) -> Side:
        own = copy.deepcopy(model)
        watch(own, clock)
        optimizer = optimize([p for p in own.parameters() if p.requires_grad])
        generator = torch.Generator(at.device).manual_seed(3)

        def step() -> Tensor:
            losses = []
            for part in images.split(at.size.micro):
                clock.switch("embed")
                noise = torch.rand(len(part), own.num_patches, generator=generator, device=at.device)
                with at.autocast():
                    loss = forward(own, part, noise)
                (loss * (len(part) / at.size.batch)).backward()
                losses.append(loss.detach())
            finish_step(clock, optimizer)
            return torch.stack(losses).mean()

        return Side(uses, step)

    plain = {
        "embed": "two argsorts, all patches embedded, gather",
        "restore": "repeat, cat, gather, cat, add",
        "decoder": "predicts all patches",
        "loss": "targets and errors of all patches",
        "optimizer": "torch.optim.AdamW(fused=True)",
    }
    ours = {
        "embed": "fastssl.functional.mask_ids, embed_visible",
        "restore": "fastssl.functional.restore_tokens",
        "decoder": "predicts the removed patches",
        "loss": "fastssl.functional.masked_patch_loss",
        "optimizer": "fastssl.optim.AdamW",
    }
    sides = {
        BEFORE: side(plain, repository_forward, partial(torch.optim.AdamW, fused=True, **_ADAMW)),
        AFTER: side(ours, our_forward, partial(AdamW, **_ADAMW)),
    }
    return Pair(sides, ("embed", "restore", "loss", "optimizer"), lambda: check(at, model, images[:CHECKED_PICTURES]))


def check(at: Setting, model: MAE, images: Tensor) -> Checked:
    """The accuracy check: the loss, and the gradients of all weights as one vector, on a few pictures (N, C, H, W)."""
    noise = torch.rand(len(images), model.num_patches, device=at.device)
    exact = _gradients(copy.deepcopy(model).double(), repository_forward, images.double(), noise, nullcontext())
    found = []
    for forward in (repository_forward, our_forward):
        own = copy.deepcopy(model)
        watch(own, Clock(at.device))
        got = _gradients(own, forward, images, noise, at.autocast())
        found.append(accuracy.Errors(*(relative_error(*pair) for pair in zip(got, exact, strict=True))))
    return judged(*found, at.dtype)


def _gradients(model: nn.Module, forward: Forward, images: Tensor, noise: Tensor, context) -> tuple[Tensor, Tensor]:
    with context:
        loss = forward(model, images, noise)
    gradients = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
    return loss.detach(), torch.cat([g.flatten() for g in gradients])
