"""Instance discrimination (Wu et al. 2018): every picture is its own class, and a bank holds an embedding for each.

    loss_i = -log exp(<z_i, bank_i> / t) / sum_j exp(<z_i, bank_j> / t)                                    (eq. 2)
    bank_i <- normalize(momentum bank_i + (1 - momentum) z_i)                                      after the loss

with z_i the mean where a picture comes several times.

The paper approximates the sum by noise-contrastive estimation; here it runs over the whole bank, exactly, and no (B, N) matrix
exists. The bank is a constant of the loss: nothing of it is kept for the backward, so its update may come before that.

The bank starts with random rows, as in the paper. ``fill_bank`` with every sample before the first epoch saves the epochs in which
embeddings that are still alike would flee from each other towards positives that mean nothing.
"""

import torch
from torch import Tensor, nn

from fastssl.checks import check_number, check_whole
from fastssl.distributed.gather import gather_rows
from fastssl.functional import similarity_lse
from fastssl.loss.parts.dot_products import dot_rows
from fastssl.loss.parts.ids import arange_ids, class_sums, compact_ids
from fastssl.loss.parts.reductions import softplus

from ._checks import check_batch, check_widths, samples_of
from ._common import BackboneMethod, random_unit_rows
from ._recompute import once, recomputing


class InstDisc(BackboneMethod):
    """Instance discrimination around any encoder: ``InstDisc(backbone, len(dataset))(images, index)`` is the loss.

    Wu et al. 2018, https://arxiv.org/abs/1805.01978, equation 2, with the exact sum over the bank.

    Args:
        backbone: the encoder, any module from inputs (B, ...) to features (B, feature_dim). It may also return maps, a mapping or a
            tuple: docs/methods.md, Encoders.
        num_samples: number N of samples in the training set. The bank has a row for each; it is float32 and in the state dict.
        feature_dim: width of the features. By default a probe finds it.
        projection_dim: width D of the embeddings; one linear layer leads to it.
        temperature: above 0.
        momentum: share of the old row that stays in the bank at an update, at least 0 and below 1.
        proximal_weight: weight of |z_i - bank_i|^2, which is added to the loss (the paper's equation 10).

    With several processes each bank takes the embeddings of all, and so is the same in each; ``MoCoQueue`` says what to tell DDP
    about such buffers.

    Raises:
        TypeError: an argument of the wrong type, such as a backbone that is no module.
        ValueError: an argument out of its range, or a backbone whose features no rule covers.

    Examples:
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 8))
        >>> method = InstDisc(backbone, num_samples=20, projection_dim=4)
        >>> loss = method(torch.rand(5, 3, 2, 2), torch.tensor([0, 3, 7, 8, 19]))
        >>> loss.shape, method.bank.shape
        (torch.Size([]), torch.Size([20, 4]))
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_samples: int,
        feature_dim: int | None = None,
        *,
        projection_dim: int = 128,
        temperature: float = 0.07,
        momentum: float = 0.5,
        proximal_weight: float = 0.0,
    ):
        name = type(self).__name__
        num_samples = check_whole(name, "num_samples", num_samples, 2)
        check_widths(name, projection_dim=projection_dim)
        check_number(name, "momentum", momentum, 0.0, 1.0)
        check_number(name, "proximal_weight", proximal_weight, 0.0)
        super().__init__(backbone, feature_dim, temperature)
        self.momentum, self.proximal_weight = momentum, proximal_weight
        self.projection_head = nn.Linear(self.feature_dim, projection_dim)
        self.bank: Tensor
        self.register_buffer("bank", random_unit_rows(num_samples, projection_dim))

    def rows(self, images: Tensor) -> Tensor:
        """images (B, ...) -> embeddings (B, D) of unit length in the dtype of the bank."""
        return nn.functional.normalize(self.projection_head(self.embed(images)).to(self.bank.dtype), dim=1)

    def forward(self, images: Tensor, index: Tensor) -> Tensor:
        """The loss of a batch. In training mode its embeddings are averaged into their rows of the bank.

        Args:
            images: (B, ...) float.
            index: (B,) integers in [0, num_samples), which samples the images are of.

        Returns:
            Scalar float32.

        Raises:
            TypeError: an ``index`` that is no integers.
            ValueError: an ``index`` of another length or, where the host can see it, outside of the bank.
        """
        index = self.checked(images, index)
        z = self.rows(images)
        own, places, old = once(self, images, lambda: self.rows_now(index))
        bank = self.bank.index_copy(0, places, old) if recomputing() else self.bank
        dot = dot_rows(z, own)
        loss = self.against_bank(z, dot, index, bank).mean()
        if self.proximal_weight:
            loss = loss + self.proximal_weight * (2.0 - 2.0 * dot).mean()
        if self.training and not recomputing():
            self.update_bank(z, places)
        return loss

    def against_bank(self, z: Tensor, dot: Tensor, index: Tensor, bank: Tensor) -> Tensor:
        """z (N, D), <z, own row> (N,), which row is their own (N,) -> equation 2 of each (N,), over the whole bank."""
        scale = 1.0 / self.temperature
        others = similarity_lse(z, bank, scale=scale, x_id=index.int(), y_id=arange_ids(bank))
        return softplus(others - scale * dot)

    def checked(self, images: Tensor, index: Tensor) -> Tensor:
        """index (B,) as int64, refused where it does not fit images (B, ...) or the bank."""
        check_batch(type(self).__name__, 1, images=images)
        return samples_of(type(self).__name__, index, images, len(self.bank))

    def rows_now(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """index (B,) -> its rows of the bank (B, D), which rows will change (M,), in training of all processes, these (M, D)."""
        places = gather_rows(index) if self.training else index
        return self.bank[index], places, self.bank[places]

    @torch.no_grad()
    def update_bank(self, z: Tensor, places: Tensor) -> None:
        """Moves the rows ``places`` (M,) int64 of the bank towards z of all processes, z (B, D) here; all of them must call it."""
        rows = self.bank[places].lerp(self.means(z, places), 1.0 - self.momentum)
        self.bank.index_copy_(0, places, nn.functional.normalize(rows, dim=1))

    @torch.no_grad()
    def fill_bank(self, images: Tensor, index: Tensor) -> None:
        """images (B, ...), index (B,) integers -> the bank's rows are their embeddings as they are now.

        With several processes all must call it as often; a sample may come in each.
        """
        places = gather_rows(self.checked(images, index))
        self.bank.index_copy_(0, places, nn.functional.normalize(self.means(self.rows(images), places), dim=1))

    def means(self, z: Tensor, places: Tensor) -> Tensor:
        """z (B, D) of this process, places (M,) of all -> (M, D): the rows of all, of a sample that comes twice their mean.

        Of rows that are written to one place of the bank, the last one counts, whichever that is on a GPU: they are equal.
        """
        z, own = gather_rows(z), compact_ids(places)
        count = class_sums(torch.ones_like(z[:, :1]), own)
        return (class_sums(z, own) / count.clamp_min(1.0))[own]
