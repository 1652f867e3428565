"""Random masking by a stable argsort, in plain PyTorch: ``by_sorting`` of the op, which also serves samples too long to count."""

from fastssl.ops.mask_ids import by_sorting as mask_ids

__all__ = ["mask_ids"]
