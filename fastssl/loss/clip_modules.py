"""``clip_loss`` and ``siglip_loss`` as the modules of open_clip 3.3, in one process and in several.

open_clip has four ways to take the loss in several processes. Let L be the loss of the joined batch, and L_r the mean over the rows
of process r among the columns of all, so that L is the mean of the L_r.

    local_loss  gather_with_grad   value   mean of the encoders' gradients over W processes
    yes         yes                L_r     that of L
    no          yes                L       that of L
    no          no (the default)   L       that of L, divided by W; the gradient of the scale is not divided
    yes         no                 L_r     another one: what the columns of a process get from the rows of others is missing

The first three are ``clip_loss(group=...)``, which computes L_r. For the last one the columns are gathered here. SigLIP's texts go
around in one of four ways there (``dist_impl``); all of them have the sum that ``siglip_loss(group=...)`` has.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.checks import check_choice, check_number, check_views, check_whole, widest
from fastssl.distributed import Ranks, gather_rows, gather_rows_with_grad, world_size
from fastssl.distributed.class_sums import sum_of_all
from fastssl.distributed.ranks import join
from fastssl.ops.sigmoid_pair import sigmoid_pair

from .clip import clip_loss, clip_of, siglip_loss
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


class _DividedGradient(torch.autograd.Function):
    """The tensor itself, whose gradient is divided by W."""

    @staticmethod
    def forward(ctx, features, world):
        ctx.world = world
        return features.view_as(features)

    @staticmethod
    def backward(ctx, upstream):
        return upstream / ctx.world, None


class ClipLoss(nn.Module):
    """``clip_loss`` with the arguments, attributes and methods of open_clip's ``ClipLoss`` (Radford et al. 2021, figure 3).

    The features are expected at unit length, unless ``normalize``, and ``logit_scale`` after exp. No N x N logits are made, unless
    a subclass overrides ``get_logits`` or ``get_ground_truth``: then the loss is the cross-entropy of what these return, as in
    open_clip.

    Args:
        local_loss: in several processes each contrasts its own N pairs with those of all, instead of all with all.
        gather_with_grad: the gradient goes through the gather to the other processes.
        cache_labels: ``get_ground_truth`` keeps its labels; the loss itself needs none.
        rank: the rank of this process.
        world_size: number of processes, every one of which must bring the same number of rows. More than 1 needs a process group of
            that size.
        use_horovod: accepted in one process; refused in several, where ``torch.distributed`` gathers.
        normalize: scale rows to unit length first.
        label_smoothing: in [0, 1), as in ``clip_loss``; in several processes not with ``local_loss`` and without
            ``gather_with_grad``.

    Raises:
        TypeError, ValueError: a wrong argument.
        NotImplementedError: Horovod, or smoothing with ``local_loss`` alone.

    Examples:
        >>> criterion = ClipLoss(normalize=True)
        >>> image, text = torch.randn(8, 32, requires_grad=True), torch.randn(8, 32)
        >>> criterion(image, text, logit_scale=1 / 0.07).backward()
        >>> criterion(image, text, 10.0, output_dict=True).keys()
        dict_keys(['contrastive_loss'])
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
        if world_size > 1 and local_loss and not gather_with_grad and label_smoothing:
            raise NotImplementedError("ClipLoss: label_smoothing with local_loss=True needs gather_with_grad=True")
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
        """The mean loss of both directions.

        Args:
            image_features: (N, D) float32, bfloat16, float16 or float64, of unit length unless ``normalize``.
            text_features: (N, D), dtype and device of ``image_features``; row i belongs to image i.
            logit_scale: multiplies the similarities; a number or a one-element float tensor, which may need a gradient.
            logit_bias: added to every logit; it changes nothing in a softmax, and its gradient is 0.
            output_dict: return ``{"contrastive_loss": loss}``.

        Returns:
            A scalar, float32 (float64 for float64 input), or the dict with it. Memory O(N D), as ``clip_loss``.

        Raises:
            TypeError, ValueError: wrong type, dtype, shape or device, a scale or bias that is not finite, or a process group that
                is not of ``world_size`` and ``rank``.
        """
        if type(self).get_logits is not ClipLoss.get_logits or type(self).get_ground_truth is not ClipLoss.get_ground_truth:
            return _output(self._loss_of_logits(image_features, text_features, logit_scale, logit_bias), output_dict)
        if self.world_size == 1:
            smoothing = self.label_smoothing
            loss = clip_loss(
                image_features, text_features, logit_scale, logit_bias, normalize=self.normalize, label_smoothing=smoothing
            )
            return _output(loss, output_dict)
        if self.gather_with_grad or not self.local_loss:
            return _output(self._of_all(image_features, text_features, logit_scale, logit_bias), output_dict)
        image, text, all_image, all_text = self._gathered(image_features, text_features)
        own, columns = arange_ids(image, self.rank * len(image)), arange_ids(all_text)
        losses = []
        for x, y in ((image, all_text), (text, all_image)):
            lse = lse_of("ClipLoss", x, y, scale=logit_scale, x_id=own, y_id=columns)
            losses.append(softplus(lse - logit_scale * dot_rows(x, y[own])).mean())
        loss = 0.5 * (losses[0] + losses[1])
        if isinstance(logit_bias, Tensor):
            loss = loss + 0.0 * logit_bias.reshape(()).to(loss.dtype)
        return _output(loss, output_dict)

    def _of_all(self, image: Tensor, text: Tensor, scale, bias) -> Tensor:
        """The three forms of the loss whose gradient is that of the joined batch, or that divided by W."""
        image, text = widest(image, text)
        check_views("ClipLoss", ("image_features", "text_features"), image, text)
        _check_processes("ClipLoss", self.rank, self.world_size)
        joined = join("ClipLoss", Ranks(), image, grad=f"{image.requires_grad} {text.requires_grad}")
        if not self.gather_with_grad:
            image, text = (_DividedGradient.apply(t, self.world_size) for t in (image, text))
        loss = clip_of("ClipLoss", image, text, scale, bias, self.normalize, None, self.label_smoothing, joined)
        if self.local_loss or joined is None:
            return loss
        own = loss.detach()
        return loss + (sum_of_all(joined, own) / self.world_size - own)

    def get_logits(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The logits of the images and of the texts, for those who want the matrices; the loss itself does not call this.

        From features (N, D) they are (N, M) with ``local_loss`` and in one process, otherwise (M, M), where M is the number of
        pairs of all processes.
        """
        image, text, all_image, all_text = self._gathered(image_features, text_features)
        if not self.local_loss:
            image, text = all_image, all_text
        per_image, per_text = logit_scale * image @ all_text.T, logit_scale * text @ all_image.T
        return (per_image, per_text) if logit_bias is None else (per_image + logit_bias, per_text + logit_bias)

    def get_ground_truth(self, device: torch.device, num_logits: int) -> Tensor:
        """The column of each row's positive, (num_logits,) int64; with ``cache_labels`` kept for the next call."""
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
        of_images, of_texts = (F.cross_entropy(part, labels, label_smoothing=self.label_smoothing) for part in logits)
        return (of_images + of_texts) / 2


class SigLipLoss(nn.Module):
    """``siglip_loss`` with the arguments, attributes and methods of open_clip's ``SigLipLoss`` (Zhai et al. 2023, eq. 1).

    The features are expected at unit length, unless ``normalize``, and ``logit_scale`` after exp. In several processes each
    contrasts its N images with the texts of all, and the loss is divided by N.

    Args:
        cache_labels: has no effect, as in open_clip.
        rank: the rank of this process.
        world_size: number of processes, every one of which must bring the same number of rows. More than 1 needs a process group of
            that size.
        dist_impl: "bidir" (None), "shift", "reduce" or "gather": the same loss. With "gather" and "reduce" the texts are gathered
            here, and with the other two they travel from process to process.
        chunk_size: has no effect, since the N x N logits are never made; a later open_clip has this argument.
        normalize: scale rows to unit length first.

    Raises:
        TypeError, ValueError: a wrong argument.

    Examples:
        >>> criterion = SigLipLoss(normalize=True)
        >>> image, text = torch.randn(8, 32, requires_grad=True), torch.randn(8, 32)
        >>> criterion(image, text, logit_scale=10.0, logit_bias=-10.0).backward()
        >>> image.grad.shape
        torch.Size([8, 32])
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
        """The loss of all pairs, divided by N.

        Args:
            image_features: (N, D) float32, bfloat16, float16 or float64, of unit length unless ``normalize``.
            text_features: (N, D), dtype and device of ``image_features``; row i belongs to image i.
            logit_scale: multiplies the similarities; a number or a one-element float tensor, which may need a gradient.
            logit_bias: added to every logit; a number, a one-element float tensor, which may need a gradient, or None for 0.
            output_dict: return ``{"contrastive_loss": loss}``.

        Returns:
            A scalar, float32 (float64 for float64 input), or the dict with it. Memory O(N D).

        Raises:
            TypeError, ValueError: wrong type, dtype, shape or device, a scale or bias that is not finite, or a process group that
                is not of ``world_size`` and ``rank``.
        """
        bias = 0.0 if logit_bias is None else logit_bias
        if self.world_size > 1:
            _check_processes("SigLipLoss", self.rank, self.world_size)
            group = Ranks(transport="ring" if self.dist_impl in ("bidir", "shift") else "gather")
            loss = siglip_loss(image_features, text_features, logit_scale, bias, normalize=self.normalize, group=group)
            return _output(loss, output_dict)
        image, text = widest(image_features, text_features)
        check_views("SigLipLoss", ("image_features", "text_features"), image, text)
        if self.normalize:
            image, text = unit_rows(image), unit_rows(text)
        return _output(self._loss(image, text, logit_scale, logit_bias), output_dict)

    def get_logits(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
    ) -> Tensor:
        """The logits (N, M) of images (N, D) and texts (M, D), for those who want the matrix; the loss does not call this."""
        logits = logit_scale * image_features @ text_features.T
        return logits if logit_bias is None else logits + logit_bias

    def get_ground_truth(self, device: torch.device, dtype: torch.dtype, num_logits: int, negative_only: bool = False) -> Tensor:
        """Labels (num_logits, num_logits): 1 on the diagonal, unless ``negative_only``, and -1 elsewhere."""
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
        """The loss of the pairs of images (N, D) and texts (M, D); with ``negative_only`` no image belongs to a text."""
        bias = 0.0 if logit_bias is None else logit_bias
        if not negative_only:
            return siglip_loss(image_features, text_features, logit_scale, bias)
        own, columns = arange_ids(image_features), arange_ids(text_features, len(image_features))
        total = sigmoid_pair(image_features, text_features, scale=logit_scale, bias=bias, x_id=own, y_id=columns, op="SigLipLoss")
        return total / len(image_features)
