"""Cross-entropy of student logits against soft targets over K prototypes, with several teacher rows for each student row.

    q_m     = softmax((x_m + b_g) / T)           x (M, K) teacher's logits, b (G, K) biases of prototypes, g = (m // inner) mod G
    Q_n     = sum over the teacher rows m that n meets, q_m               (or the given rows themselves, with ``probabilities``)
    loss_n  = w_n sum_k Q_nk (lse_n - s_nk / Ts)                        s (N, K) student's logits, lse_n = log sum_k exp(s_nk / Ts)
    ds_nk   = w_n / Ts (exp(s_nk / Ts - lse_n) sum_k Q_nk - Q_nk)         for upstream 1

With N = S B and M = T B, rows of S and T crops of B images, student row (s, b) meets the teacher rows (t, b) of all t, without
t = s where ``skip_diagonal``; S = T = 1 compares row with row. With ``heads``, consecutive segments of the K columns have softmaxes
of their own, and their losses are added (Garrido et al. 2025, nested prototypes).

A bias is all that a target needs. A centred teacher (Caron et al. 2021) has b = -centre, a balanced one (Sinkhorn) has b = its
potential. Both have the unit of logits, and their sum x + b keeps what its rounding leaves over: at logits of 100 and T = 0.04 that
is worth 1e-4 in q. The row's maximum is subtracted before the division by the temperature, for the same reason.

Targets of a student row are summed before they meet it, because the loss is linear in them. So each row of both sides is read once
for its largest entry and sum, and once for loss and gradient. Bytes, for elements of e bytes: 2 e (N + M) K read, e N K written,
and nothing of that size beside logits and gradient. FLOPs: about 2 exponentials and 8 others of each element.

Rows of weight 0 are not read; their loss and gradient are 0. Of float16 logits the gradient holds, in place of w, a power of two
that brings it into the range of normal numbers. w, the 1 / count of a mean, and the upstream gradient with a scaler's factor then
multiply it at once, so that it does not vanish.
"""

import torch
from torch import Tensor

from fastssl.checks import check_choice, check_constant, check_dense, check_flag, check_float_dtype

from ._patches import check_device, dense_rows, trackable
from ._register import define_op, first_derivative_only, new_accumulator, refuse_transforms, save, saved
from ._targets import check_heads, check_temperature, column_biases, on_device

_REST = (
    "Tensor teacher, Tensor? bias, Tensor? weight, Tensor temperatures, SymInt[] heads, SymInt batch, SymInt inner, "
    "bool skip_diagonal, bool probabilities"
)


def _fake_fwd(student, *rest):
    return new_accumulator(student, student.shape[0]), student.new_empty(student.shape if rest[-1] else (0,))


_fwd = define_op(
    "soft_cross_entropy_fwd", f"(Tensor student, {_REST}, bool gradient) -> (Tensor, Tensor)", _fake_fwd, "soft_cross_entropy"
)
_in_place = define_op(
    "soft_cross_entropy_in_place",
    f"(Tensor(a!) student, {_REST}) -> Tensor",
    lambda student, *_: new_accumulator(student, student.shape[0]),
    "soft_cross_entropy",
)
_scale = define_op(
    "soft_cross_entropy_scale", "(Tensor(a!) dstudent, Tensor upstream) -> ()", lambda *_: None, "soft_cross_entropy"
)


class _How:
    """What a call is beside its tensors."""

    def __init__(self, op: str, options: tuple, reduction: str):
        self.op, self.options, self.reduction = op, options, reduction

    def reduced(self, rows: Tensor) -> Tensor:
        return rows if self.reduction == "none" else rows.sum()


#: What the gradient of float16 logits may be at most, of targets that add up to 1: unusual ones have room above it.
_FLOAT16_GRADIENT = 4096.0


def _in_range(weight: Tensor | None, temperature: Tensor, most: int, rows: int) -> tuple[Tensor, Tensor]:
    """Weights (N,) for the op on float16 logits, a power of two or 0, and what the rows' losses are multiplied by afterwards."""
    power = torch.exp2(torch.floor(torch.log2(_FLOAT16_GRADIENT / most * temperature))).clamp(2.0**-24, 2.0**24)
    if weight is None:
        return power.expand(rows).contiguous(), (1.0 / power).expand(rows)
    return torch.where(weight == 0, 0.0, power), weight / power


class _SoftCrossEntropy(torch.autograd.Function):
    """The forward makes the gradient beside the loss; the first backward gives it away, and a second one makes it again."""

    @staticmethod
    def forward(ctx, student, teacher, bias, weight, temperatures, how):
        loss, dstudent = _fwd(student, teacher, bias, weight, temperatures, *how.options, True)
        ctx.how, ctx.op = how, how.op
        if torch.compiler.is_compiling():
            save(ctx, dstudent)
        else:
            save(ctx, student, teacher, bias, weight, temperatures)
            ctx.dstudent = dstudent
        return how.reduced(loss)

    @staticmethod
    @first_derivative_only("soft_cross_entropy")
    def backward(ctx, grad):
        if torch.compiler.is_compiling():
            (dstudent,) = saved(ctx)
            return (dstudent * grad.reshape(-1, 1)).to(dstudent.dtype), *(None,) * 5
        tensors = saved(ctx)
        dstudent, ctx.dstudent = ctx.dstudent, None
        if dstudent is None:
            dstudent = _fwd(*tensors, *ctx.how.options, True)[1]
        _scale(dstudent, grad)
        return dstudent, *(None,) * 5


class _InPlace(torch.autograd.Function):
    """The gradient takes the place of the logits."""

    @staticmethod
    def forward(ctx, student, teacher, bias, weight, temperatures, how):
        loss = _in_place(student.detach(), teacher, bias, weight, temperatures, *how.options)
        torch.autograd.graph.increment_version(student)
        save(ctx, student)
        ctx.how, ctx.op, ctx.given = how, how.op, False
        return how.reduced(loss)

    @staticmethod
    @first_derivative_only("soft_cross_entropy")
    def backward(ctx, grad):
        if ctx.given:
            raise RuntimeError(
                f"{ctx.op}: in_place=True wrote the gradient over the logits, and a first backward has taken it; "
                "call without in_place where a graph is walked twice"
            )
        ctx.given = True
        dstudent = saved(ctx)[0].detach()
        _scale(dstudent, grad)
        return dstudent, *(None,) * 5


def _check_rows(op: str, student, teacher) -> tuple[int, int, int]:
    """S, T and B of logits (S, B, K) and (T, B, K), or 1, 1 and N of (N, K) twice."""
    for name, value in (("student", student), ("teacher", teacher)):
        check_dense(op, name, value, "a tensor (N, K) or (S, B, K)")
        check_float_dtype(op, name, value)
        if value.dim() not in (2, 3) or 0 in value.shape:
            raise ValueError(f"{op}: {name} must have shape (N, K) or (crops, B, K), no side of it 0, got {tuple(value.shape)}")
    if student.dim() != teacher.dim() or student.shape[-2:] != teacher.shape[-2:]:
        wanted = "the same shape (N, K), or shapes (S, B, K) and (T, B, K)"
        raise ValueError(f"{op}: student and teacher must have {wanted}, got {tuple(student.shape)} and {tuple(teacher.shape)}")
    check_device(op, "teacher", teacher, "student", student)
    if student.dim() == 2:
        return 1, 1, student.shape[0]
    return student.shape[0], teacher.shape[0], student.shape[1]


def _check_weight(op: str, weight, student: Tensor) -> Tensor | None:
    """The weight (N,) in the accumulator dtype of ``student``."""
    if weight is None:
        return None
    check_dense(op, "weight", weight, "a float tensor {}", tuple(student.shape[:-1]))
    check_float_dtype(op, "weight", weight)
    check_constant(op, "weight", weight)
    if weight.shape != student.shape[:-1]:
        raise ValueError(
            f"{op}: weight must have shape {tuple(student.shape[:-1])}, got {tuple(weight.shape)} (follows from student)"
        )
    check_device(op, "weight", weight, "student", student)
    return trackable(weight.detach().to(torch.promote_types(student.dtype, torch.float32)).reshape(-1).contiguous())


def _check_in_place(op: str, student: Tensor, teacher: Tensor) -> None:
    if student.is_leaf:
        raise ValueError(f"{op}: in_place=True needs student logits that were computed, not a leaf that requires grad")
    if student._base is not None and student._base.is_leaf and student._base.requires_grad:
        raise ValueError(f"{op}: in_place=True needs student logits that were computed, not a view of a leaf that requires grad")
    if not student.is_contiguous():
        raise ValueError(f"{op}: in_place=True needs contiguous student logits, got strides {tuple(student.stride())}")
    if student.untyped_storage()._cdata == teacher.untyped_storage()._cdata:
        raise ValueError(f"{op}: in_place=True needs student logits that share no memory with the teacher's")


def soft_cross_entropy(
    student: Tensor,
    teacher: Tensor,
    *,
    student_temperature: float | Tensor = 0.1,
    teacher_temperature: float | Tensor | None = 0.04,
    center: Tensor | None = None,
    potential: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_diagonal: bool = False,
    heads: list[int] | None = None,
    reduction: str = "mean",
    in_place: bool = False,
) -> Tensor:
    """Cross-entropy of the student's softmax against the teacher's, over prototypes: the loss of DINO, iBOT and SwAV.

    ``q = softmax((teacher - center + potential) / teacher_temperature)``, ``loss = -sum_k q_k log softmax(student /
    student_temperature)_k`` (Caron et al. 2021, eq. 2). Each pair of a student row and a teacher row of the same image counts.
    Neither softmax is stored, and the student's gradient is made in the same pass.

    Args:
        student: (N, K), or (S, B, K) for S crops of B images; float32, bfloat16, float16 or float64. Its rows over the K prototypes
            are logits that no temperature has divided.
        teacher: (N, K) in the first case, row against row; (T, B, K) in the second, where each of the S crops meets each of the T
            crops of the same image. Its dtype may differ from the student's. It is a constant.
        student_temperature: Above 0; a number or a one-element tensor on the device of ``student``, not learned.
        teacher_temperature: The same for the teacher; None: its rows are probabilities already (or any targets), and neither
            ``center`` nor ``potential`` is given.
        center: What is subtracted from the teacher's logits; broadcastable to them, with a last dimension of K.
        potential: What is added to the teacher's logits, such as the result of ``sinkhorn``; likewise.
        weight: ``student.shape[:-1]``, float: what the loss of each student row is multiplied by. Rows of weight 0 are not read.
        ignore_diagonal: Leave out the pairs of crop s with teacher crop t = s, which are one image crop.
        heads: Sizes of consecutive segments of the K columns, each of which has softmaxes of its own (nested prototypes). Their
            losses are added. None: all columns are one head.
        reduction: "mean": the weighted sum over all pairs, divided by the number of pairs, whatever the weights; "sum"; or "none":
            of each student row the weighted sum over its teacher rows.
        in_place: Write the gradient over the memory of ``student``, whose values are then lost. The logits must be contiguous,
            computed (no leaf) and in memory of their own. Where no gradient is wanted, and in a compiled graph, nothing is written.

    Returns:
        The loss, float32 (float64 for float64 logits), a scalar or ``student.shape[:-1]``. It can be differentiated once, in
        ``student``; with ``in_place`` a second backward is refused.

    Raises:
        TypeError, ValueError: An argument is wrong; the message names it.
        NotImplementedError: Something other than ``student`` requires a gradient, or the call is inside a ``torch.func`` transform
            or forward-mode differentiation.

    Examples:
        >>> import torch
        >>> from fastssl.functional import soft_cross_entropy
        >>> student, teacher = torch.zeros(10, 4, 8), torch.zeros(2, 4, 8)  # 10 and 2 crops of 4 images, 8 prototypes
        >>> soft_cross_entropy(student, teacher, ignore_diagonal=True)  # log 8
        tensor(2.0794)
    """
    return cross_entropy_of(
        "soft_cross_entropy",
        student,
        teacher,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        center=center,
        potential=potential,
        weight=weight,
        ignore_diagonal=ignore_diagonal,
        heads=heads,
        reduction=reduction,
        in_place=in_place,
    )


def cross_entropy_of(
    op: str,
    student: Tensor,
    teacher: Tensor,
    *,
    student_temperature: float | Tensor = 0.1,
    teacher_temperature: float | Tensor | None = 0.04,
    center: Tensor | None = None,
    potential: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_diagonal: bool = False,
    heads: list[int] | None = None,
    reduction: str = "mean",
    in_place: bool = False,
) -> Tensor:
    """``soft_cross_entropy`` for a loss: errors name ``op``."""
    refuse_transforms(op, student, teacher, center, potential, weight, student_temperature, teacher_temperature)
    s, t, batch = _check_rows(op, student, teacher)
    check_constant(op, "teacher", teacher)
    check_choice(op, "reduction", reduction, ("mean", "sum", "none"))
    check_flag(op, "ignore_diagonal", ignore_diagonal)
    check_flag(op, "in_place", in_place)
    check_temperature(op, "student_temperature", student_temperature, student)
    given = teacher_temperature is None
    if not given:
        check_temperature(op, "teacher_temperature", teacher_temperature, student)
    elif center is not None or potential is not None:
        raise ValueError(f"{op}: center and potential belong to logits, but teacher_temperature=None says that teacher has none")
    pairs = (s * t - min(s, t) if ignore_diagonal else s * t) * batch
    if ignore_diagonal and s * t == 1:
        raise ValueError(f"{op}: ignore_diagonal=True leaves no pair of 1 crop with 1 crop")
    if (teacher.dtype == torch.float64) != (student.dtype == torch.float64):
        student, teacher = (x if x.dtype == torch.float64 else x.double() for x in (student, teacher))
    heads = check_heads(op, heads, "student", student.shape[-1])
    weights = _check_weight(op, weight, student)
    bias, inner = column_biases(op, teacher, center, potential)
    temperatures = on_device((student_temperature, 1.0 if given else teacher_temperature), student)
    learns = student.requires_grad and torch.is_grad_enabled()
    in_place = bool(in_place) and learns and not torch.compiler.is_compiling()
    if in_place:
        _check_in_place(op, student, teacher)
    rows, teacher_rows = (dense_rows(x.reshape(-1, x.shape[-1])) for x in (student, teacher.detach()))
    after: Tensor | None = None
    if student.dtype == torch.float16:
        weights, after = _in_range(weights, temperatures[0], t, rows.shape[0])
        if reduction == "mean":
            after = after / pairs
    elif reduction == "mean":
        ones = new_accumulator(rows, rows.shape[0]).fill_(1.0) if weights is None else weights
        weights = ones / pairs
    how = _How(op, (heads, batch, inner, bool(ignore_diagonal), given), "none" if after is not None else reduction)
    if not learns:
        loss = how.reduced(_fwd(rows, teacher_rows, bias, weights, temperatures, *how.options, False)[0])
    else:
        node = _InPlace if in_place else _SoftCrossEntropy
        loss = node.apply(rows, trackable(teacher_rows), bias, weights, temperatures, how)
    if after is not None:
        loss = loss * after if reduction == "none" else (loss * after).sum()
    return loss.reshape(student.shape[:-1]) if reduction == "none" else loss
