"""MAE's loss as a module; the function is ``fastssl.functional.masked_patch_loss``."""

from torch import Tensor, nn

from fastssl.ops.patch_loss import masked_patch_loss


class MAELoss(nn.Module):
    """``masked_patch_loss`` as a module that keeps the settings: ``MAELoss(16, norm_pix_loss=True)(images, pred, mask)``.

    The mean error of the predicted pixels of the removed patches (He et al. 2022, section 3).

    Args:
        patch_size: height and width of a patch in pixels, or one number for both.
        norm_pix_loss: targets are normalised patch by patch.
        layout: order of a patch's P = C p q entries: "pqc" as in MAE, transformers and lightly, "cpq" as in the weights of a
            convolution.
        loss: "mse" or "l1".
        empty: what a mask without any removed patch gives on a CPU: "error", or "zero" for a loss of 0.

    Examples:
        >>> images, pred, mask = torch.rand(2, 3, 32, 32), torch.rand(2, 4, 768), torch.tensor([[0.0, 1.0, 1.0, 0.0]] * 2)
        >>> MAELoss(16)(images, pred, mask).shape
        torch.Size([])
    """

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
        """The loss of the masked patches.

        Args:
            images: (N, C, H, W) float32, bfloat16, float16 or float64; a constant.
            pred: (N, L, P) predictions of all L patches together with ``mask``, or (N, K, P) of some together with ``ids``.
            mask: (N, L) bool or float, the weight of each patch: 1 where it was removed, 0 where it is visible.
            ids: (N, K) int64 in [0, L), the patches that the rows of ``pred`` belong to.

        Returns:
            A scalar, float32 (float64 for float64 predictions).

        Raises:
            TypeError, ValueError: as ``masked_patch_loss``.
        """
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
