"""The order of frames as a label: verification (Misra et al. 2016), direction (Wei et al. 2018), order (Lee et al. 2017).

    z_t = backbone(frame_t)      loss = mean over arrangements p of cross_entropy(head(cat(z_p(1), .., z_p(n))), class of p)

F frames are taken from each clip, evenly spaced. Each task is a table of arrangements p of them, whose class is to be told:

    verification    F = 5: of frames a b c d e, (b, c, d) is in order; (b, a, d) and (b, e, d) are not; all of them also backwards
    direction       F = 5: forwards or backwards
    order           F = 4: which of the 12 orders, where one and its reverse are the same
"""

from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.checks import accumulator_dtype, check_choice

from ._checks import check_widths, given
from ._common import ProjectionHead
from ._frames import FrameMethod, check_clips, frames_at, spaced

TASKS = ("verification", "direction", "order")


def arrangements(task: str) -> tuple[Tensor, Tensor]:
    """Places of frames (K, n) and their classes (K,), each class equally often.

    Args:
        task: "verification", "direction" or "order".

    Returns:
        Two int64 tensors. Verification has the triples in order twice, because twice as many are not.

    Raises:
        ValueError: another task.

    Examples:
        >>> places, classes = arrangements("order")
        >>> tuple(places.shape), classes.tolist() == list(range(12))
        ((12, 4), True)
    """
    check_choice("arrangements", "task", task, TASKS)
    rows: list[tuple[int, ...]]
    if task == "direction":
        rows, classes = [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0)], [1, 0]
    elif task == "order":
        rows = [order for order in permutations(range(4)) if order[0] < order[-1]]
        classes = list(range(len(rows)))
    else:
        rows = [(1, 2, 3), (1, 2, 3), (1, 0, 3), (1, 4, 3)]
        rows, classes = rows + [row[::-1] for row in rows], [1, 1, 0, 0] * 2
    return torch.tensor(rows), torch.tensor(classes)


class FrameOrder(FrameMethod):
    """Tells arrangements of frames apart: ``FrameOrder(backbone)(clips)`` is the loss to call ``backward`` on.

    Misra et al. 2016 (Shuffle and Learn), https://arxiv.org/abs/1603.08561; Wei et al. 2018 (arrow of time, CVPR, "Learning and
    Using the Arrow of Time"), here with frames in place of optical flow; Lee et al. 2017 (OPN), https://arxiv.org/abs/1708.01246.

    Args:
        backbone: the encoder of frames, any module from images (N, ...) to features (N, feature_dim). It may also return maps, a
            mapping or a tuple: docs/methods.md, Encoders.
        feature_dim: width of the features. By default a probe finds it.
        task: "verification", whether three frames are in order; "direction", whether five run forwards; "order", in which of 12
            orders four are.
        hidden_dim: width of the head's hidden layer; by default ``feature_dim``.

    Raises:
        TypeError: an argument of the wrong type, such as a backbone that is no module.
        ValueError: an argument out of its range, or a backbone whose features no rule covers.

    Examples:
        >>> method = FrameOrder(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 8)), task="order")
        >>> clips = torch.rand(5, 6, 3, 2, 2)
        >>> method(clips).shape, method.embed(clips[:, 0]).shape
        (torch.Size([]), torch.Size([5, 8]))
    """

    places: Tensor
    classes: Tensor

    def __init__(
        self, backbone: nn.Module, feature_dim: int | None = None, *, task: str = "verification", hidden_dim: int | None = None
    ):
        check_choice("FrameOrder", "task", task, TASKS)
        check_widths("FrameOrder", **given(hidden_dim=hidden_dim))
        super().__init__(backbone, feature_dim)
        self.task = task
        places, classes = arrangements(task)
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("classes", classes, persistent=False)
        self.frames = int(places.max()) + 1
        width = places.shape[1] * self.feature_dim
        self.head = ProjectionHead(width, hidden_dim or self.feature_dim, int(classes.max()) + 1)

    def answers(self, clips: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """What the head says of each arrangement of each clip.

        Args:
            clips: (B, T, ...) of T frames, at least as many as the task takes. In evaluation the frames are the middle ones.
            generator: what draws the first frame of each clip in training; by default torch's own.

        Returns:
            Logits (B, K, classes) of the K arrangements, whose classes are ``self.classes`` (K,).
        """
        check_clips("FrameOrder", clips, self.frames)
        times = spaced("FrameOrder", clips, self.frames, random=self.training, generator=generator)
        z = self.of_frames(frames_at(clips, times))
        return self.head(z[:, self.places].flatten(2).flatten(0, 1)).unflatten(0, (len(clips), -1))

    def forward(self, clips: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """The loss of a batch of clips.

        Args:
            clips: (B, T, ...), B clips of T frames that are as far apart in time everywhere; T is at least 5, for "order" 4.
            generator: what draws the first frame of each clip in training; by default torch's own.

        Returns:
            Scalar float32 (float64 for a float64 model), the mean cross-entropy over all arrangements of all clips.

        Raises:
            TypeError: clips that are no dense tensor.
            ValueError: clips that are too short.
        """
        logits = self.answers(clips, generator=generator)
        return F.cross_entropy(logits.flatten(0, 1).to(accumulator_dtype(logits)), self.classes.repeat(len(clips)))
