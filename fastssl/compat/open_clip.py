"""Drop-ins for ``open_clip.loss`` of open_clip 3.3: ``ClipLoss`` and ``SigLipLoss``, in one process and in several."""

from fastssl.loss.clip_modules import ClipLoss, SigLipLoss

__all__ = ["ClipLoss", "SigLipLoss"]
