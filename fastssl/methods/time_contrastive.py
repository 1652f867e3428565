"""Time-contrastive learning from one camera (Sermanet et al. 2018): near in time is alike, far in time is not.

    z_t = head(backbone(frame_t))      loss = InfoNCE(z_a; z_p positive; the other clips' z_p and all clips' z_n negative)

For each clip a time a is drawn, p with 1 <= |p - a| <= near, and n with |n - a| >= far. The paper's loss is a triplet of a, p and
n; this is its n-pairs form, where each anchor meets the far frames of all clips.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from fastssl.functional import info_nce

from ._checks import check_negatives, check_positive, check_widths, given
from ._common import ProjectionHead, ranks_of
from ._frames import FrameMethod, check_clips, check_generator, frames_at


class TimeContrastive(FrameMethod):
    """Near frames against far ones: ``TimeContrastive(backbone)(clips)`` is the loss to call ``backward`` on.

    Sermanet et al. 2018, https://arxiv.org/abs/1704.06888, the single-view form.

    Args:
        backbone: the encoder of frames, any module from images (N, ...) to features (N, feature_dim). It may also return maps, a
            mapping or a tuple: docs/methods.md, Encoders.
        feature_dim: width of the features. By default a probe finds it.
        near: the most frames between an anchor and its positive.
        far: the fewest frames between an anchor and the negative of its own clip; above ``near``.
        hidden_dim: width of the head's hidden layer; by default ``feature_dim``.
        projection_dim: width D of the embeddings that the loss compares.
        temperature: of InfoNCE, above 0.
        negatives: with several processes, "global" compares the rows of all of them, "local" those of each process alone
            (docs/methods.md, Several processes).

    Raises:
        TypeError: an argument of the wrong type, such as a backbone that is no module.
        ValueError: an argument out of its range, or a backbone whose features no rule covers.

    Examples:
        >>> method = TimeContrastive(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 8)), projection_dim=4)
        >>> clips = torch.rand(5, 9, 3, 2, 2)
        >>> method(clips).shape, method.embed(clips[:, 0]).shape
        (torch.Size([]), torch.Size([5, 8]))
    """

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int | None = None,
        *,
        near: int = 1,
        far: int = 4,
        hidden_dim: int | None = None,
        projection_dim: int = 128,
        temperature: float = 0.1,
        negatives: str = "global",
    ):
        check_widths("TimeContrastive", near=near, far=far, projection_dim=projection_dim, **given(hidden_dim=hidden_dim))
        check_positive("TimeContrastive", temperature=temperature)
        if far <= near:
            raise ValueError(f"TimeContrastive: far must be above near, {near}, got {far}")
        super().__init__(backbone, feature_dim)
        self.near, self.far, self.temperature = near, far, temperature
        self.negatives = check_negatives("TimeContrastive", negatives)
        self.projection_head = ProjectionHead(self.feature_dim, hidden_dim or self.feature_dim, projection_dim)

    def project(self, frames: Tensor) -> Tensor:
        """Frames (B, n, ...) -> the embeddings (B, n, projection_dim) that the loss compares."""
        z = self.of_frames(frames)
        return self.projection_head(z.flatten(0, 1)).unflatten(0, z.shape[:2])

    def draw(self, clips: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Times (B, 3) of an anchor, a near and a far frame of each clip."""
        count, frames = clips.shape[:2]
        time = torch.arange(frames, device=clips.device)
        apart = (time[:, None] - time).abs()
        near, far = (apart > 0) & (apart <= self.near), apart >= self.far
        anchor = torch.multinomial(far.any(1).float().expand(count, -1), 1, generator=generator)[:, 0]
        others = [torch.multinomial(mask[anchor].float(), 1, generator=generator)[:, 0] for mask in (near, far)]
        return torch.stack([anchor, *others], 1)

    def forward(self, clips: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """The loss of a batch of clips.

        Args:
            clips: (B, T, ...), T above ``far``, B at least 2.
            generator: what draws the times of the frames; by default torch's own.

        Returns:
            InfoNCE, scalar float32 (float64 for a float64 model), averaged over the clips.

        Raises:
            TypeError: clips that are no dense tensor.
            ValueError: a single clip, or clips that are too short.
        """
        check_clips("TimeContrastive", clips, self.far + 1, batch=2)
        check_generator("TimeContrastive", generator, clips.device)
        anchor, near, far = self.project(frames_at(clips, self.draw(clips, generator))).unbind(1)
        how: dict[str, Any] = {"temperature": self.temperature, "group": ranks_of(self)}
        return cast(Tensor, info_nce(anchor.contiguous(), near.contiguous(), hard_negative_keys=far.contiguous(), **how))
