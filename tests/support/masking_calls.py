"""Calls of the registered ops of masked image modelling: legal ones, and some that only a caller without Python's checks makes."""

import torch

from fastssl.testing import masking


def op_calls():
    """Each registered op with arguments."""
    x, ids, noise = torch.randn(2, 6, 4), torch.tensor([[0, 5, 2], [1, 1, 4]]), torch.rand(2, 6)
    images, pred = torch.randn(2, 3, 4, 6), torch.randn(2, 6, 12)
    mask, how = (noise > 0.3).float(), (2, 2, True, True, 1e-6, False)
    _, total, stats = torch.ops.fastssl.patch_loss_fwd(images, pred, mask, None, *how)
    restore = masking.shuffled(2, 6, x)
    return {
        "mask_ids": (noise, None, 2, 6, 2),
        "mask_ids.seed": (None, torch.tensor(3), 2, 6, 2),
        "gather_tokens_fwd": (x, ids),
        "gather_tokens_bwd": (x[:, :3], ids, 6),
        "restore_tokens_fwd": (x[:, :4], restore, torch.randn(4), torch.randn(7, 4), 1),
        "restore_tokens_bwd": (torch.randn(2, 7, 4), restore, 3, 1, [True, True]),
        "visible_patches_fwd": (images, ids, 2, 2, 1, torch.float32),
        "visible_patches_bwd": (torch.randn(2, 4, 12), ids, [2, 3, 4, 6], 2, 2, 1),
        "visible_positions": (ids, torch.randn(5), torch.randn(7, 5), torch.randn(1, 5), 5, torch.float32),
        "patch_loss_fwd": (images, pred, mask, None, *how),
        "patch_loss_bwd": (torch.ones(()), total, stats, images, pred, mask, None, *how),
        "patch_loss_one_pass": (images, pred, mask, None, *how),
    }


def mask_calls():
    """Of the ops around masks, whose own tests have more."""
    text = torch.zeros(2, 5, dtype=torch.int64)
    return {
        "block_mask": (torch.tensor([3, 4]), torch.tensor(3), torch.ones(9), 2, 6, 7, 2, 40, 5, True),
        "mask_tokens": (text, text > 0, torch.tensor(3), 1, 9, 3, 4, 5, -100),
    }


#: op -> (argument, dimension) along which any size is legal
FREE = {
    "gather_tokens_fwd": {(0, 2), (1, 1)},
    "gather_tokens_bwd": {(0, 2)},
    "restore_tokens_fwd": {(0, 1)},
    "restore_tokens_bwd": {(0, 2)},
    "visible_patches_fwd": {(0, 1), (1, 1)},
    "visible_positions": {(0, 0), (0, 1), (3, 0)},
    "block_mask": {(2, 0)},
}


def short_calls(calls):
    """(op, words, arguments): each call with one of its tensors cut in one dimension, or of another dtype."""
    for name, arguments in calls.items():
        op = name.split(".")[0]
        for at, value in enumerate(arguments):
            if not isinstance(value, torch.Tensor):
                continue
            dims = [dim for dim in range(value.dim()) if (at, dim) not in FREE.get(op, ())]
            cut = {f"shorter in {dim}": value.narrow(dim, 0, value.shape[dim] - 1).contiguous() for dim in dims}
            if value.dim() == 0:
                cut["of three"] = value.expand(3).clone()
            if value.dtype == torch.int64:
                cut["int32"] = value.int()
            for how, other in cut.items():
                yield op, f"{name}, argument {at} {how}", (*arguments[:at], other, *arguments[at + 1 :])
