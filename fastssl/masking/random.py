"""Random masks of tokens in the forms of MAE and of lightly, on ``mask_ids`` and ``gather_tokens``."""

import torch
from torch import Tensor

from fastssl.checks import check_flag
from fastssl.ops._patches import check_device, check_floats
from fastssl.ops._random import check_generator, check_place, uniform
from fastssl.ops._register import refuse_transforms
from fastssl.ops.gather_tokens import take_tokens
from fastssl.ops.mask_ids import check_noise, check_ratio, check_size, draw_ids, in_order


def random_masking(
    x: Tensor,
    mask_ratio: float,
    *,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
    num_keep: int | None = None,
    rounding: str = "keep_floor",
) -> tuple[Tensor, Tensor, Tensor]:
    """Removes random patches after their embedding (He et al. 2022, section 3): the kept tokens, the mask, and the way back.

    Where the patches are not embedded yet, ``mask_ids`` and ``embed_visible`` leave out three quarters of that work.

    Args:
        x: (N, L, D) float32, bfloat16, float16 or float64, without prefix tokens.
        mask_ratio: The share that is removed, in [0, 1]; at 1 no token is kept.
        noise: (N, L) float32, bfloat16, float16 or float64 on the device of ``x``; the K tokens with the smallest noise are kept.
            None: ``generator`` or ``seed`` makes it.
        generator: A ``torch.Generator`` on the device of ``x`` for ``torch.rand``. None: torch's default generator.
        seed: 64 bits for Philox in place of noise: the same seed gives the same mask on every device; see ``mask_ids``.
        num_keep: K itself, in [0, L], in place of ``mask_ratio``.
        rounding: The rule from ratio to K, see ``num_kept``.

    Returns:
        x_masked (N, K, D) in the order of the noise, K = int(L (1 - mask_ratio)) by default; ``mask`` (N, L) float32, 1 =
        removed; and ``ids_restore`` (N, L) int64 for ``restore_tokens``. x_masked can be differentiated once in ``x``.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it. No generator has been advanced then.
        NotImplementedError: The call is inside a ``torch.func`` transform or forward-mode differentiation.

    Examples:
        >>> import torch
        >>> from fastssl.functional import random_masking
        >>> x_masked, mask, ids_restore = random_masking(torch.rand(2, 196, 8), 0.75, seed=0)
        >>> x_masked.shape, mask.sum(1)
        (torch.Size([2, 49, 8]), tensor([147., 147.]))
    """
    op = "random_masking"
    refuse_transforms(op, x)
    check_floats(op, "x", x, "N, L, D")
    ids = draw_ids(
        op,
        x.shape[:2],
        mask_ratio,
        by="x",
        placed_by="x",
        noise=noise,
        generator=generator,
        seed=seed,
        num_keep=num_keep,
        rounding=rounding,
        device=x.device,
    )
    check_device(op, "ids", ids.ids_keep, "x", x)
    return take_tokens(x, ids.ids_keep), ids.mask, ids.ids_restore


def random_token_mask(
    size: tuple[int, int],
    mask_ratio: float = 0.6,
    mask_class_token: bool = False,
    device: torch.device | str | None = None,
    *,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Draws kept and removed token ids of each sample, as ``lightly.models.utils.random_token_mask`` does.

    Args:
        size: (N, L), the number of samples and of tokens of each; L includes the class token.
        mask_ratio: The share that is removed, in [0, 1].
        mask_class_token: False: token 0 is always kept, stands first and does not count: K = max(1, int((L - 1) (1 - mask_ratio))
            + 1). True: K = int(L (1 - mask_ratio)).
        device: Where the result lies. None: the device of ``noise`` or ``generator``, else the CPU.
        noise: (N, L) float, at least 0; its first column is not used where the class token is kept. None: ``generator`` makes it.
        generator: A ``torch.Generator`` on ``device`` for ``torch.rand``. None: torch's default generator.

    Returns:
        ``idx_keep`` (N, K) and ``idx_mask`` (N, L - K), int64, in the order of the noise.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it. No generator has been advanced then.

    Examples:
        >>> import torch
        >>> from fastssl.functional import random_token_mask
        >>> random_token_mask((1, 5), 0.5, noise=torch.tensor([[0.5, 0.4, 0.1, 0.3, 0.2]]))
        (tensor([[0, 2, 4]]), tensor([[3, 1]]))
    """
    op = "random_token_mask"
    rows, length = check_size(op, size)
    check_ratio(op, mask_ratio)
    check_flag(op, "mask_class_token", mask_class_token)
    if noise is not None and generator is not None:
        raise ValueError(f"{op}: only one of noise and generator can be given")
    device = check_place(op, device)
    check_generator(op, generator, device)
    if noise is None:
        noise = uniform(rows, length, generator, device)
    else:
        check_noise(op, noise, rows, length, "size", device)
    keep = int((length - (not mask_class_token)) * (1 - mask_ratio))
    if not mask_class_token:
        keep = max(1, keep + 1)
        noise = noise.detach().clone()
        noise[:, 0] = -1.0
    found = in_order(noise.detach().contiguous(), None, rows, length, keep)
    return found.ids_keep, found.ids_mask
