"""The operations of the MAE repository, in its order: two argsorts, gathers whose index is copied for each element, all patches
embedded, four copies of the decoder's tokens, the error of all patches before the mask."""

import torch
import torch.nn.functional as F

from fastssl.testing.masked_updates import forms, patch_side

from . import Peer, masked


def _take(tokens, ids):
    """tokens (N, L, D), ids (N, K) -> (N, K, D)."""
    return torch.gather(tokens, 1, ids[:, :, None].repeat(1, 1, tokens.shape[2]))


def _mask(given):
    n, length = given["noise"].shape
    keep = int(length * (1 - given["mask_ratio"]))
    shuffle = torch.argsort(given["noise"], dim=1)
    restore = torch.argsort(shuffle, dim=1)
    sorted_mask = torch.ones(n, length, device=shuffle.device)
    sorted_mask[:, :keep] = 0
    return {"ids_keep": shuffle[:, :keep], "ids_restore": restore, "mask": torch.gather(sorted_mask, 1, restore)}


def _random_masking(given):
    order = _mask(given)
    return {"kept": _take(given["x"], order["ids_keep"]), "mask": order["mask"], "ids_restore": order["ids_restore"]}


def _embed(given):
    weight, pos = given["weight"], given["pos"]
    tokens = F.conv2d(given["images"], weight, given["bias"], stride=weight.shape[2:]).flatten(2).transpose(1, 2)
    tokens = _take(tokens + pos[:, 1:], given["ids_keep"])
    front = (given["cls"] + pos[:, :1]).expand(len(tokens), -1, -1)
    return {"embedded": torch.cat([front, tokens], 1)}


def _restore(given):
    x, restore = given["x"], given["ids_restore"]
    hidden = given["mask_token"].repeat(len(x), restore.shape[1] + 1 - x.shape[1], 1)
    tokens = _take(torch.cat([x[:, 1:], hidden], 1), restore)
    return {"restored": torch.cat([x[:, :1], tokens], 1) + given["decoder_pos"]}


def _loss(given):
    images, pred, patch = given["images"], given["pred"], patch_side(given)
    n, channels, height, width = images.shape
    cells = images.reshape(n, channels, height // patch, patch, width // patch, patch)
    target = torch.einsum("nchpwq->nhwpqc", cells).reshape(pred.shape)
    if given["norm_pix_loss"]:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6) ** 0.5
    error = ((pred - target) ** 2).mean(-1)
    return {"loss": (error * given["mask"]).sum() / given["mask"].sum()}


FORMS = forms(_mask, _random_masking, _embed, _restore, _loss)
PEER = Peer("mae_repository", masked(FORMS))
