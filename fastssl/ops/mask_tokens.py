"""The op behind masked language modelling: which tokens are hidden, what hides them, and the labels, in one pass.

    r_nl = word l mod 4 of Philox4x32-10 at the counter (l / 4, n, 0x6D746F6B, 0) under the seed, 32 random bits
    special_nl or r_nl >= pick:   inputs = ids,      labels = ignore_index
    r_nl < hide:                  inputs = mask_id,  labels = ids
    r_nl < swap:                  inputs = floor(w_nl V / 2^32),  labels = ids      w_nl: word 0 at (l, n, 0x6D746F6C, 0)
    else:                         inputs = ids,      labels = ids

hide = p_mask p 2^32, swap = (p_mask + p_random) p 2^32 and pick = p 2^32, rounded to whole numbers. One word decides, so that
all backends agree on every token. For each token 8 bytes are read (9 with special) and 16 written.
"""

import torch
from torch import Tensor

from fastssl.checks import check_dense, check_number, check_whole

from ._patches import check_device
from ._random import seed_of
from ._register import define_op

STREAM, STREAM_SWAP = 0x6D746F6B, 0x6D746F6C

_mask_tokens = define_op(
    "mask_tokens",
    "(Tensor ids, Tensor? special, Tensor seed, int mask_id, int vocab_size, int hide, int swap, int pick, int ignore_index)"
    " -> (Tensor, Tensor)",
    lambda ids, *_: (torch.empty_like(ids), torch.empty_like(ids)),
    "mask_tokens",
)


def mask_tokens(
    ids: Tensor,
    *,
    mask_id: int,
    vocab_size: int,
    probability: float = 0.15,
    mask_share: float = 0.8,
    random_share: float = 0.1,
    special: Tensor | None = None,
    ignore_index: int = -100,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Makes inputs and labels of masked language modelling (Devlin et al. 2019, section 3.1).

    Each token is chosen on its own with ``probability``. Of the chosen tokens a share of ``mask_share`` becomes ``mask_id``, a
    share of ``random_share`` becomes a random id of [0, V), which may be the token itself, and the rest stays. This is the
    distribution of ``DataCollatorForLanguageModeling`` in transformers.

    Args:
        ids: (N, L) int64, N and L at least 1 and below 2^31. They are not changed.
        mask_id: The id of the mask token [MASK], at least 0.
        vocab_size: V, the number of ids, in [1, 2^32).
        probability: The probability that a token is chosen, in [0, 1].
        mask_share: The share of the chosen tokens that become ``mask_id``, at least 0.
        random_share: The share of the chosen tokens that become a random id, at least 0; at most 1 together with ``mask_share``.
        special: (N, L) bool; True: this token is never chosen ([CLS], [SEP], padding).
        ignore_index: The label where nothing is to be predicted.
        generator: A ``torch.Generator`` on the device of ``ids``, which draws the seed. None: torch's default generator does, so
            that ``torch.manual_seed`` decides.
        seed: 64 bits for Philox in place of a generator: the same seed gives the same masks on every device. A one-element int64
            tensor on the device of ``ids`` is read there, anew at each replay of a CUDA graph.

    Returns:
        The inputs (N, L) and the labels (N, L), int64.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it. No generator has been advanced then.

    Examples:
        >>> import torch
        >>> from fastssl.functional import mask_tokens
        >>> ids = torch.tensor([[2, 7, 8, 3]])
        >>> special = torch.tensor([[True, False, False, True]])
        >>> mask_tokens(ids, mask_id=1, vocab_size=9, probability=1.0, mask_share=1.0, random_share=0.0, special=special, seed=0)
        (tensor([[2, 1, 1, 3]]), tensor([[-100,    7,    8, -100]]))
    """
    op = "mask_tokens"
    _check_tokens(op, ids, special)
    for name, number, low in (("mask_id", mask_id, 0), ("vocab_size", vocab_size, 1), ("ignore_index", ignore_index, -(2**63))):
        check_whole(op, name, number, low, 2**32 if name == "vocab_size" else 2**63)
    shares = (("probability", probability), ("mask_share", mask_share), ("random_share", random_share))
    for name, share in shares:
        check_number(op, name, share, 0.0)
        if share > 1:
            raise ValueError(f"{op}: {name} must be in [0, 1], got {share}")
    probability, mask_share, random_share = float(probability), float(mask_share), float(random_share)
    if mask_share + random_share > 1 + 1e-6:  # 0.8 and 0.2 of a float32 config are above 1
        raise ValueError(f"{op}: mask_share + random_share must be at most 1, got {mask_share} + {random_share}")
    seed = seed_of(op, seed, generator, ids.device, ("ids", ids))
    pick = round(probability * 2**32)
    hide, swap = (min(pick, round(probability * share * 2**32)) for share in (mask_share, mask_share + random_share))
    special = None if special is None else special.contiguous()
    return _mask_tokens(ids.contiguous(), special, seed, mask_id, vocab_size, hide, swap, pick, ignore_index)


def _check_tokens(op: str, ids, special) -> None:
    check_token_ids(op, ids)
    if special is None:
        return
    check_dense(op, "special", special, "a bool tensor (N, L)")
    if special.dtype != torch.bool:
        raise TypeError(f"{op}: special must be a bool tensor (N, L), got {special.dtype}")
    if special.shape != ids.shape or special.device != ids.device:
        got = f"{tuple(special.shape)} on {special.device}"
        raise ValueError(f"{op}: special must have shape {tuple(ids.shape)} on {ids.device} as ids, got {got}")
    check_device(op, "special", special, "ids", ids)


def check_token_ids(op: str, ids) -> None:
    """Refuses tokens that are not (N, L) int64 with N and L at least 1 and below 2^31."""
    check_dense(op, "ids", ids, "an int64 tensor (N, L)")
    if ids.dtype != torch.int64:
        raise TypeError(f"{op}: ids must be an int64 tensor (N, L), got {ids.dtype}")
    if ids.dim() != 2 or min(ids.shape) < 1 or max(ids.shape) >= 2**31:
        raise ValueError(f"{op}: ids must be (N, L), sides of at least 1 and below 2^31, got shape {tuple(ids.shape)}")
