"""``clip_loss`` and ``siglip_loss`` as the modules of open_clip 3.3, in one process and in several.

In several processes CLIP gathers images and texts, SigLIP texts. open_clip passes SigLIP's texts around in four ways
(``dist_impl``); their sums are the same, so one gather serves them all.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.checks import check_choice, check_number, check_views, check_whole, widest
from fastssl.distributed import gather_rows, gather_rows_with_grad, world_size
from fastssl.ops.sigmoid_pair import sigmoid_pair

from .clip import clip_loss, clip_of_all, siglip_loss
from .parts.dot_products import dot_rows, unit_rows
from .parts.ids import arange_ids
from .parts.reductions import lse_of, softplus

EXCHANGES = ("bidir", "shift", "reduce", "gather")


def _check_place(op: str, rank: int, world: int) -> None:
    world = check_whole(op, "world_size", world, 1)
    rank = check_whole(op, "rank", rank, 0)
    if rank >= world:
        raise ValueError(f"{op}: rank must be below world_size = {world}, got {rank}")


def _check_processes(op: str, rank: int, world: int) -> None:
    if (there := world_size()) != world:
        raise ValueError(f"{op}: world_size={world} needs a process group of as many processes, got {there}")
    if (mine := torch.distributed.get_rank()) != rank:
        raise ValueError(f"{op}: rank must be that of this process, {mine}, got {rank}")


def _output(loss: Tensor, output_dict: bool) -> Tensor | dict[str, Tensor]:
    return {"contrastive_loss": loss} if output_dict else loss


class ClipLoss(nn.Module):
    """``clip_loss`` with the arguments, attributes and methods of open_clip's ``ClipLoss``.

    Features come normalised, ``logit_scale`` exponentiated. Without N x N logits, unless a subclass overrides ``get_logits`` or
    ``get_ground_truth``: then the loss is the cross-entropy of what these return, as there.

    Args:
        local_loss: in several processes each contrasts its own N pairs with those of all, instead of all with all.
        gather_with_grad: the gradient goes through the gather to the other processes.
        cache_labels: ``get_ground_truth`` keeps its labels; the loss itself needs none.
        rank: of this process.
        world_size: number of processes, all of which must bring as many rows. More than 1 needs a process group of that size.
        use_horovod: accepted in one process; refused in several, where ``torch.distributed`` gathers.
        normalize: scale rows to unit length first.
        label_smoothing: as in ``clip_loss``; not with ``local_loss`` in several processes.

    Raises:
        TypeError, ValueError: a wrong argument. NotImplementedError: Horovod, or smoothing with ``local_loss``.
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
        *,
        normalize: bool = False,
        label_smoothing: float = 0.0,
    ):
        super().__init__()
        _check_place("ClipLoss", rank, world_size)
        check_number("ClipLoss", "label_smoothing", label_smoothing, 0.0, 1.0)
        if world_size > 1 and use_horovod:
            raise NotImplementedError("ClipLoss: use_horovod=True is not there; processes gather with torch.distributed")
        if world_size > 1 and local_loss and label_smoothing:
            raise NotImplementedError("ClipLoss: label_smoothing is not there together with local_loss; give one of them")
        self.local_loss, self.gather_with_grad, self.cache_labels = local_loss, gather_with_grad, cache_labels
        self.rank, self.world_size, self.use_horovod = rank, world_size, use_horovod
        self.normalize, self.label_smoothing = normalize, label_smoothing
        self.prev_num_logits = 0
        self.labels: dict[torch.device, Tensor] = {}

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """image_features, text_features (N, D) -> loss, or {"contrastive_loss": loss}. TypeError, ValueError: as ``clip_loss``."""
        if type(self).get_logits is not ClipLoss.get_logits or type(self).get_ground_truth is not ClipLoss.get_ground_truth:
            return _output(self._loss_of_logits(image_features, text_features, logit_scale, logit_bias), output_dict)
        if self.world_size == 1:
            smoothing = self.label_smoothing
            loss = clip_loss(
                image_features, text_features, logit_scale, logit_bias, normalize=self.normalize, label_smoothing=smoothing
            )
            return _output(loss, output_dict)
        image, text, all_image, all_text = self._gathered(image_features, text_features)
        if not self.local_loss:
            smoothing = self.label_smoothing
            loss = clip_of_all("ClipLoss", all_image, all_text, logit_scale, logit_bias, label_smoothing=smoothing)
            return _output(loss, output_dict)
        own, columns = arange_ids(image, self.rank * len(image)), arange_ids(all_text)
        losses = []
        for x, y in ((image, all_text), (text, all_image)):
            lse = lse_of("ClipLoss", x, y, scale=logit_scale, x_id=own, y_id=columns)
            losses.append(softplus(lse - logit_scale * dot_rows(x, y[own])).mean())
        loss = 0.5 * (losses[0] + losses[1])
        if isinstance(logit_bias, Tensor):
            loss = loss + 0.0 * logit_bias.reshape(()).to(loss.dtype)
        return _output(loss, output_dict)

    def get_logits(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """image_features, text_features (N, D) -> logits of images and of texts (N, M), or (M, M): the matrices, made for you.

        M: pairs of all processes; the logits are (N, M) with ``local_loss`` and in one process.
        """
        image, text, all_image, all_text = self._gathered(image_features, text_features)
        if not self.local_loss:
            image, text = all_image, all_text
        per_image, per_text = logit_scale * image @ all_text.T, logit_scale * text @ all_image.T
        return (per_image, per_text) if logit_bias is None else (per_image + logit_bias, per_text + logit_bias)

    def get_ground_truth(self, device: torch.device, num_logits: int) -> Tensor:
        """(num_logits,) int64: the column of each row's positive, kept for the next call with ``cache_labels``."""
        if self.prev_num_logits == num_logits and device in self.labels:
            return self.labels[device]
        start = num_logits * self.rank if self.world_size > 1 and self.local_loss else 0
        labels = torch.arange(start, start + num_logits, device=device)
        if self.cache_labels:
            self.labels[device], self.prev_num_logits = labels, num_logits
        return labels

    def _gathered(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Own images and texts (N, D), and those of all processes (M, D), with the gradients that the options ask for."""
        image, text = widest(image, text)
        check_views("ClipLoss", ("image_features", "text_features"), image, text)
        if self.normalize:
            image, text = unit_rows(image), unit_rows(text)
        if self.world_size == 1:
            return image, text, image, text
        _check_processes("ClipLoss", self.rank, self.world_size)
        return image, text, self._all(image), self._all(text)

    def _all(self, rows: Tensor) -> Tensor:
        if self.gather_with_grad:
            return gather_rows_with_grad(rows)[0]
        everyone = gather_rows(rows, even=True)
        if self.local_loss:
            return everyone
        first = self.rank * len(rows)
        return torch.cat([everyone[:first], rows, everyone[first + len(rows) :]])

    def _loss_of_logits(self, image: Tensor, text: Tensor, scale, bias) -> Tensor:
        logits = self.get_logits(image, text, scale, logit_bias=bias)
        labels = self.get_ground_truth(image.device, logits[0].shape[0])
        return sum(F.cross_entropy(part, labels, label_smoothing=self.label_smoothing) for part in logits) / 2


class SigLipLoss(nn.Module):
    """``siglip_loss`` with the arguments, attributes and methods of open_clip's ``SigLipLoss``.

    Features come normalised, unless ``normalize``; ``logit_scale`` comes exponentiated. In several processes each contrasts its N
    images with the texts of all, and the loss is divided by N.

    Args:
        cache_labels: has no effect, as there.
        rank: of this process.
        world_size: number of processes, all of which must bring as many rows. More than 1 needs a process group of that size.
        dist_impl: "bidir" (None), "shift", "reduce" or "gather": the same loss, here always by one gather of the texts.
        chunk_size: has no effect: the N x N logits are never made. A later open_clip has it.
        normalize: scale rows to unit length first.

    Raises:
        TypeError, ValueError: a wrong argument.
    """

    def __init__(
        self,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        dist_impl: str | None = None,
        chunk_size: int = 0,
        *,
        normalize: bool = False,
    ):
        super().__init__()
        _check_place("SigLipLoss", rank, world_size)
        check_choice("SigLipLoss", "dist_impl", dist_impl, (None, *EXCHANGES))
        self.cache_labels, self.rank, self.world_size = cache_labels, rank, world_size
        self.dist_impl, self.chunk_size, self.normalize = dist_impl or EXCHANGES[0], chunk_size, normalize
        self.prev_num_logits = 0
        self.labels: dict[torch.device, Tensor] = {}

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """image_features, text_features (N, D) -> loss, or {"contrastive_loss": loss}. Errors as ``siglip_loss``."""
        image, text = widest(image_features, text_features)
        check_views("SigLipLoss", ("image_features", "text_features"), image, text)
        if self.normalize:
            image, text = unit_rows(image), unit_rows(text)
        if self.world_size == 1:
            return _output(self._loss(image, text, logit_scale, logit_bias), output_dict)
        _check_processes("SigLipLoss", self.rank, self.world_size)
        bias = 0.0 if logit_bias is None else logit_bias
        texts, first = gather_rows_with_grad(text)
        own, columns = arange_ids(image, first), arange_ids(texts)
        total = sigmoid_pair(image, texts, scale=logit_scale, bias=bias, x_id=own, y_id=columns, op="SigLipLoss")
        return _output(total / len(image), output_dict)

    def get_logits(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
    ) -> Tensor:
        """image_features (N, D), text_features (M, D) -> logits (N, M): the matrix, made for you."""
        logits = logit_scale * image_features @ text_features.T
        return logits if logit_bias is None else logits + logit_bias

    def get_ground_truth(self, device: torch.device, dtype: torch.dtype, num_logits: int, negative_only: bool = False) -> Tensor:
        """(num_logits, num_logits): 1 on the diagonal, unless ``negative_only``, and -1 elsewhere."""
        labels = torch.full((num_logits, num_logits), -1.0, device=device, dtype=dtype)
        return labels if negative_only else labels.fill_diagonal_(1.0)

    def _loss(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
        negative_only: bool = False,
    ) -> Tensor:
        """image_features (N, D), text_features (M, D) -> the loss of these pairs; with ``negative_only`` none of them belong."""
        bias = 0.0 if logit_bias is None else logit_bias
        if not negative_only:
            return siglip_loss(image_features, text_features, logit_scale, bias)
        own, columns = arange_ids(image_features), arange_ids(text_features, len(image_features))
        options = {"scale": logit_scale, "bias": bias, "x_id": own, "y_id": columns}
        return sigmoid_pair(image_features, text_features, **options, op="SigLipLoss") / len(image_features)
