"""MAE's loss as a module; the function is ``fastssl.functional.masked_patch_loss``."""

from torch import Tensor, nn

from fastssl.ops.patch_loss import masked_patch_loss


class MAELoss(nn.Module):
    """``masked_patch_loss`` with its settings kept: ``MAELoss(16, norm_pix_loss=True)(images, pred, mask)``."""

    def __init__(
        self,
        patch_size: int | tuple[int, int] = 16,
        *,
        norm_pix_loss: bool = False,
        layout: str = "pqc",
        loss: str = "mse",
        empty: str = "error",
    ):
        super().__init__()
        self.patch_size, self.norm_pix_loss, self.layout, self.loss, self.empty = patch_size, norm_pix_loss, layout, loss, empty

    def forward(self, images: Tensor, pred: Tensor, mask: Tensor | None = None, ids: Tensor | None = None) -> Tensor:
        """images (N, C, H, W), pred (N, L, P) with mask (N, L), or (N, K, P) with ids (N, K) -> loss, float32."""
        return masked_patch_loss(
            images,
            pred,
            mask,
            self.patch_size,
            norm_pix_loss=self.norm_pix_loss,
            layout=self.layout,
            loss=self.loss,
            ids=ids,
            empty=self.empty,
        )

    def extra_repr(self) -> str:
        return f"patch_size={self.patch_size}, norm_pix_loss={self.norm_pix_loss}, layout={self.layout!r}, loss={self.loss!r}"
