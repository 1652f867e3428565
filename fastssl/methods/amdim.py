"""Augmented multiscale deep infomax (Bachman et al. 2019): one view of a picture finds the places of the other, at several scales.

    s(a, c) = <a, c> / sqrt(D)        T(s) = clip tanh(s / clip)
    L(a, c) = - mean over i, l of log exp(T(s(a_i, c_il))) / (exp(T(s(a_i, c_il))) + sum over j != i, m of exp(T(s(a_i, c_jm))))
              + penalty mean over i, j, m of s(a_i, c_jm)^2
    loss = mean over both directions of [ sum over layers k of L(g, c^k) + L(c^last at a random place, c^last) ]

g is the global embedding of one view, c^k_l that of place l of layer k of the other view; D is their width. The mean of the squared
scores is <A^T A, C^T C> / (D N N P), and the softmax is computed for some rows at a time: no N x N x P tensor exists.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastssl.checks import accumulator_dtype, check_number
from fastssl.loss.parts.reductions import softplus
from fastssl.loss.parts.row_blocks import map_rows

from ._checks import check_positive
from ._local import LocalMethod


def clipped_nce(antecedent: Tensor, places: Tensor, clip: float, penalty: float) -> Tensor:
    """L of the file's equation for antecedents (N, D) of one view and the places (N, P, D) of the other."""
    a, c = (t.to(accumulator_dtype(t)) / t.shape[-1] ** 0.25 for t in (antecedent, places))
    n, count = c.shape[:2]

    def rows(a: Tensor, index: Tensor, own: Tensor, c: Tensor) -> tuple[Tensor]:
        scores = clip * torch.tanh(a @ c.flatten(0, 1).T / clip)
        mine = (index[:, None] == torch.arange(n, device=index.device)).repeat_interleave(count, 1)
        others = scores.masked_fill(mine, -math.inf).logsumexp(1)
        right = clip * torch.tanh((own @ a[:, :, None]).squeeze(2) / clip)
        return (softplus(others[:, None] - right).mean(1),)

    with torch.autocast(a.device.type, enabled=False):  # scores and their sums in float32
        (losses,) = map_rows(rows, (a, torch.arange(n, device=a.device), c), (c,), n * count)
        c = c.flatten(0, 1)
        squares = ((a.T @ a) * (c.T @ c)).sum() / (n * n * count)
    return losses.mean() + penalty * squares


class AMDIM(LocalMethod):
    """AMDIM around any encoder with inner maps: ``AMDIM(backbone, ("layer2", "layer3"))(view0, view1)`` is the loss.

    Bachman et al. 2019, https://arxiv.org/abs/1906.00910, equations 2 to 5.

    Args:
        backbone: the encoder, any module from images (B, C, H, W) to features (B, feature_dim). It may also return maps, a mapping
            or a tuple: docs/methods.md, Encoders.
        layers: names of layers inside it, as ``backbone.named_modules()`` has them, that give maps (B, D', h, w); the last one is
            also compared with itself.
        feature_dim: width of the features. By default a probe finds it.
        projection_dim: width D in which pictures and places are compared.
        clip: where the tanh ends the scores, above 0; 20 in the authors' trainings.
        penalty: weight of the mean squared score, at least 0; 0.04 in the authors' code.

    With several processes, the places of the images of the same process are the negatives.

    Raises:
        TypeError: an argument of the wrong type, such as a backbone that is no module.
        ValueError: an argument out of its range, a layer that is not there or gives no maps, or a backbone whose features no rule
            covers.

    Examples:
        >>> backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 4, 4), torch.nn.ReLU(), torch.nn.Conv2d(8, 6, 2))
        >>> method = AMDIM(backbone, ("1", "2"), projection_dim=4)
        >>> images = torch.rand(5, 3, 16, 16)
        >>> method(images, images.flip(3)).shape, method.embed(images).shape
        (torch.Size([]), torch.Size([5, 6]))
    """

    def __init__(
        self,
        backbone: nn.Module,
        layers: Sequence[str],
        feature_dim: int | None = None,
        *,
        projection_dim: int = 128,
        clip: float = 20.0,
        penalty: float = 0.04,
    ):
        check_positive("AMDIM", clip=clip)
        check_number("AMDIM", "penalty", penalty, 0.0)
        super().__init__(backbone, layers, "layers", feature_dim, projection_dim)
        self.clip, self.penalty = clip, penalty

    def forward(self, view0: Tensor, view1: Tensor) -> Tensor:
        """The loss of two views.

        Args:
            view0, view1: (B, ...) of one shape, B at least 2, what the backbone takes; row i of both is a view of image i.

        Returns:
            Scalar float32 (float64 for a float64 model).

        Raises:
            TypeError, ValueError: views of different shape, dtype or device, or of a B below 2.
        """
        self.check_views(view0, view1)
        whole, places = self.project(torch.cat([view0, view1]))
        n = len(view0)
        last = places[-1]
        chosen = torch.randint(last.shape[1], (2 * n,), device=last.device)
        one = last[torch.arange(2 * n, device=last.device), chosen]
        losses = []
        for mine, other in ((slice(None, n), slice(n, None)), (slice(n, None), slice(None, n))):
            losses += [clipped_nce(whole[mine], part[other], self.clip, self.penalty) for part in places]
            losses.append(clipped_nce(one[mine], last[other], self.clip, self.penalty))
        return torch.stack(losses).sum() / 2
