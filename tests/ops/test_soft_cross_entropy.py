"""What the table of cases does not say of soft cross-entropy: crops, heads and biases, extreme logits, gradients in place."""

import itertools

import pytest
import torch

from fastssl.functional import soft_cross_entropy
from fastssl.ops import soft_cross_entropy as contract
from fastssl.reference import soft_cross_entropy as reference
from fastssl.testing.compare import relative_error
from tests.ops.common import at_thread_counts

EXACT = 1e-5  # of a float64 evaluation of the same logits


def plain(student, teacher, center=0.0, student_temperature=0.1, teacher_temperature=0.04):
    """Row against row, in float64."""
    q = ((teacher.double() - center) / teacher_temperature).softmax(-1)
    return -(q * (student.double() / student_temperature).log_softmax(-1)).sum(-1).mean()


def both(student, teacher, center=None, **how):
    """Loss and gradient, ours and in float64."""
    ours, right = student.clone().requires_grad_(), student.double().requires_grad_()
    loss = soft_cross_entropy(ours, teacher, center=center, **how)
    truth = plain(right, teacher, 0.0 if center is None else center.double())
    loss.backward(), truth.backward()
    return (loss, ours.grad), (truth, right.grad)


def operands(batch, columns, students, teachers, groups, dtype=torch.float32, weighted=False):
    generator = torch.Generator().manual_seed(batch * columns + students)
    rows = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    bias = rows(groups, columns) if groups else None
    weight = (rows(students * batch) * 1.5).round().abs() if weighted else None
    wide = torch.promote_types(dtype, torch.float32)
    tensors = rows(students * batch, columns).to(dtype), (0.3 * rows(teachers * batch, columns)).to(dtype)
    biases = None if bias is None else (0.1 * bias).to(wide), None if weight is None else weight.to(wide)
    return *tensors, *biases, torch.tensor([0.3, 0.07], dtype=wide)


#: (batch, columns, student crops, teacher crops, heads, biases, rows of a bias next to each other)
STRUCTURES = [
    (3, 37, 1, 1, [37], 0, 1),
    (17, 600, 1, 1, [600], 1, 1),
    (2, 1025, 5, 2, [1, 1000, 24], 2, 2),
    (5, 70, 2, 3, [70], 5, 1),
    (1, 9001, 3, 2, [9001], 2, 1),
    (2, 12000, 2, 4, [4001, 7999], 1, 1),
    (4, 1, 3, 2, [1], 1, 1),
]


@pytest.mark.parametrize("probabilities, skip", itertools.product((False, True), repeat=2))
@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_every_structure_is_that_of_the_reference(structure, probabilities, skip, isa):
    batch, columns, students, teachers, heads, groups, inner = structure
    student, teacher, bias, weight, temperatures = operands(batch, columns, students, teachers, groups, weighted=skip)
    if probabilities:
        teacher, bias = teacher.abs(), None
    options = heads, batch, inner, skip, probabilities, True
    loss, gradient = contract._fwd(student, teacher, bias, weight, temperatures, *options)
    double = [t if t is None else t.double() for t in (student, teacher, bias, weight, temperatures)]
    truth, right = reference.soft_cross_entropy_fwd(*double, *options)
    assert relative_error(loss, truth) < 2e-6 and relative_error(gradient, right) < 4e-6
    exact, exactly = contract._fwd(*double, *options)
    assert relative_error(exact, truth) < 1e-13 and relative_error(exactly, right) < 1e-13


def extremes():
    """Student, teacher and centre, at sizes where exponentials overflow and the rounding of a logit is worth 1e-4."""
    even = lambda *shape: (torch.rand(shape) * 2 - 1) * 100  # noqa: E731
    yield "logits up to 100", (even(40, 3000), even(40, 3000), None)
    yield "a centre up to 100", (even(40, 3000), even(40, 3000), even(3000))
    yield "normal logits of 100", (torch.randn(30, 500) * 100, torch.randn(30, 500) * 100, None)
    yield "student and teacher agree", (s := even(20, 100), s * 0.4 + torch.randn(20, 100) * 0.01, None)
    yield "one column", (even(5, 1), even(5, 1), even(1))
    yield "one row", (even(1, 70000), even(1, 70000), None)
    yield "constants", (torch.full((4, 50), 100.0), torch.full((4, 50), -100.0), torch.full((50,), 100.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", [name for name, _ in extremes()])
def test_extreme_logits(name, dtype):
    student, teacher, center = dict(extremes())[name]
    (loss, gradient), (truth, right) = both(student.to(dtype), teacher.to(dtype), center)
    assert abs(loss - truth) <= EXACT * max(1.0, truth.abs())
    # A gradient is a difference of two probabilities, whose rounding stays where they cancel, times 1 / (temperature rows).
    noise = 2.0**-22 * len(student) ** 0.5 / (0.1 * len(student))
    if dtype != torch.float32:  # rounded once before it is multiplied by 1 / rows and once after, or to a multiple of 2^-24
        noise += torch.finfo(dtype).eps * right.norm() + 2.0**-25 * right.numel() ** 0.5
    assert (gradient - right).norm() <= EXACT * right.norm() + noise


def test_what_the_rounding_of_a_sum_leaves_over_is_kept():
    """Logits and a centre of about 100 whose difference is small: a bias that is added after the division loses it."""
    center = torch.randn(400) * 30 + 70
    teacher = center + torch.randn(50, 400) * 0.1
    student = torch.randn(50, 400)
    (loss, gradient), (truth, right) = both(student, teacher, center)
    q = (teacher / 0.04 - center / 0.04).softmax(1)
    leaf = student.clone().requires_grad_()
    (divided,) = torch.autograd.grad(-(q * (leaf / 0.1).log_softmax(1)).sum(1).mean(), leaf)
    assert relative_error(loss, truth) < 1e-6
    assert relative_error(gradient, right) < 1e-6 < 1e-5 < relative_error(divided, right)


@pytest.mark.parametrize("structure", [(1, 20000, 3, 2, [20000], 2, 1), (40, 300, 2, 2, [100, 200], 1, 1)], ids=str)
def test_every_number_of_threads_gives_the_same_bits(structure):
    batch, columns, students, teachers, heads, groups, inner = structure
    given = operands(batch, columns, students, teachers, groups)
    first, *others = at_thread_counts(lambda: contract._fwd(*given, heads, batch, inner, True, False, True))
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


def test_rows_of_weight_0_are_not_read():
    student, teacher = torch.randn(6, 40), torch.randn(6, 40)
    weight = torch.tensor([1.0, 0.0, 2.0, 0.0, 1.0, 0.5])
    right = soft_cross_entropy(student[weight != 0], teacher[weight != 0], weight=weight[weight != 0], reduction="sum")
    student[1] = teacher[1] = torch.nan
    student[3] = torch.inf
    student.requires_grad_()
    loss = soft_cross_entropy(student, teacher, weight=weight, reduction="sum")
    loss.backward()
    torch.testing.assert_close(loss, right)
    assert student.grad.isfinite().all() and not student.grad[weight == 0].any()


def test_nan_comes_through():
    student, teacher = torch.randn(4, 20), torch.randn(4, 20)
    student[0, 3] = teacher[1, 5] = torch.nan
    teacher[2] = -torch.inf
    losses = soft_cross_entropy(student, teacher, reduction="none")
    assert losses[:3].isnan().all() and losses[3].isfinite()


def test_a_mean_over_many_float16_rows_does_not_vanish():
    """1 / 4096 of a probability of 1e-4, divided by 0.1, is a subnormal float16: the scaler's factor must come first."""
    student, teacher = torch.randn(4096, 64).half(), torch.randn(4096, 64).half()
    right = both(student, teacher)[1][1]
    ours = student.clone().requires_grad_()
    (soft_cross_entropy(ours, teacher) * 65536).backward()
    assert relative_error(ours.grad.double() / 65536, right) < 1e-3
    assert (ours.grad == 0).sum() < 0.8 * (right.half() == 0).sum()


@pytest.mark.parametrize("in_place", [False, True])
def test_small_weights_of_float16_rows_do_not_vanish(in_place):
    """1 / 200 of a probability of 1 / 20,000, divided by 0.1, is a subnormal float16, of which the scaler makes a normal one."""
    student, teacher = torch.randn(3, 20000).half() * 0.3, torch.randn(3, 20000).half()
    weight = torch.tensor([1e-2, -5e-3, 0.0])
    exact = student.double().requires_grad_()
    losses = -((teacher.double() / 0.04).softmax(1) * (exact / 0.1).log_softmax(1)).sum(1)
    (right,) = torch.autograd.grad((losses * weight.double()).sum() * 65536, exact)
    leaf = student.clone().requires_grad_()
    loss = soft_cross_entropy(leaf * 1, teacher, weight=weight, reduction="sum", in_place=in_place)
    (found,) = torch.autograd.grad(loss * 65536, leaf)
    assert not found[2].any()
    assert ((found - right).abs()[:2] / right.abs()[:2]).median() < 2.0**-11


@pytest.mark.parametrize("of", [lambda leaf: leaf[:3], lambda leaf: leaf.view(2, 3, 40)[1]], ids=["slice", "view of a view"])
def test_in_place_no_leaf_is_written(of):
    leaf = torch.randn(6, 40).requires_grad_()
    before = leaf.detach().clone()
    with pytest.raises(ValueError, match="needs student logits that were computed, not a view of a leaf"):
        soft_cross_entropy(of(leaf), torch.randn(3, 40), in_place=True)
    assert torch.equal(leaf, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_in_place_the_gradient_takes_the_place_of_the_logits(dtype):
    leaf, teacher = torch.randn(3, 5, 40).to(dtype).requires_grad_(), torch.randn(2, 5, 40).to(dtype)
    how = {"ignore_diagonal": True, "center": torch.randn(40)}
    (right,) = torch.autograd.grad(soft_cross_entropy(leaf, teacher, **how) * 3, leaf)
    logits = leaf * 1
    version = logits._version
    loss = soft_cross_entropy(logits, teacher, in_place=True, **how)
    assert logits._version > version and not torch.equal(logits, leaf)
    (found,) = torch.autograd.grad(loss * 3, logits, retain_graph=True)
    assert torch.equal(found, right) and found.data_ptr() == logits.data_ptr()
    with pytest.raises(RuntimeError, match="in_place=True wrote the gradient over the logits"):
        torch.autograd.grad(loss * 3, logits)


def test_in_place_who_saved_the_logits_hears_of_it():
    leaf, teacher = torch.randn(4, 8, requires_grad=True), torch.randn(4, 8)
    logits = leaf.tanh()  # whose backward needs its result
    loss = soft_cross_entropy(logits, teacher, in_place=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_in_place_without_a_gradient_nothing_is_written():
    logits, teacher = torch.randn(4, 8), torch.randn(4, 8)
    before = logits.clone()
    loss = soft_cross_entropy(logits, teacher, in_place=True)
    assert torch.equal(logits, before) and torch.equal(loss, soft_cross_entropy(logits, teacher))


def test_in_place_refusals():
    leaf, teacher = torch.randn(4, 8, requires_grad=True), torch.randn(4, 8)
    with pytest.raises(ValueError, match="in_place=True needs student logits that were computed"):
        soft_cross_entropy(leaf, teacher, in_place=True)
    with pytest.raises(ValueError, match="contiguous"):
        soft_cross_entropy((leaf * 1).t(), teacher.t(), in_place=True)
    together = torch.cat([leaf, teacher])
    with pytest.raises(ValueError, match="share no memory"):
        soft_cross_entropy(together[:4], together.detach()[4:], in_place=True)


def test_a_compiled_graph_ignores_in_place():
    leaf, teacher = torch.randn(4, 8, requires_grad=True), torch.randn(4, 8)
    compiled = torch.compile(lambda s: soft_cross_entropy(s * 1, teacher, in_place=True), fullgraph=True, backend="eager")
    (found,) = torch.autograd.grad(compiled(leaf), leaf)
    (right,) = torch.autograd.grad(soft_cross_entropy(leaf, teacher), leaf)
    torch.testing.assert_close(found, right)


def test_offsets_beyond_32_bits():
    """Rows 2^30 elements apart, of which only the entries are touched; the gradient is written in place there."""
    far = torch.empty(2 * 2**30 + 64, dtype=torch.bfloat16).as_strided((3, 64), (2**30, 1))
    near, teacher = torch.randn(3, 64).bfloat16(), torch.randn(3, 64).bfloat16()
    far.copy_(near)
    options = None, None, torch.tensor([0.1, 0.04]), [64], 3, 1, False, False
    loss, gradient = contract._fwd(near, teacher, *options, True)
    assert torch.equal(contract._fwd(teacher, far, *options, False)[0], contract._fwd(teacher, near, *options, False)[0])
    assert torch.equal(contract._in_place(far, teacher, *options), loss)
    assert torch.equal(far, gradient)


def test_opcheck():
    for crops, weighted in ((1, False), (3, True)):
        student, teacher, bias, weight, temperatures = operands(4, 9, crops, 2, 2, weighted=weighted)
        options = [4, 5], 4, 4, crops > 1, False
        torch.library.opcheck(contract._fwd, (student, teacher, bias, weight, temperatures, *options, True))
        torch.library.opcheck(contract._in_place, (student, teacher, bias, weight, temperatures, *options))
    torch.library.opcheck(contract._scale, (torch.randn(3, 4), torch.randn(3)))
    torch.library.opcheck(contract._scale, (torch.randn(3, 4), torch.tensor(2.0)))


X = torch.zeros(3, 4)
REFUSED = [
    ((X, torch.zeros(3, 5)), {}, ValueError, "student and teacher must have the same shape"),
    ((X[None], X), {}, ValueError, "student and teacher must have the same shape"),
    ((X.int(), X), {}, TypeError, "student must be float32"),
    ((X, X[:0]), {}, ValueError, "teacher must have shape"),
    ((X, X), {"teacher_temperature": 0}, ValueError, "teacher_temperature must be finite and not 0"),
    ((X, X), {"student_temperature": -0.1}, ValueError, "student_temperature must be above 0, got -0.1"),
    ((X, X), {"center": torch.zeros(3)}, ValueError, r"center must have a shape that broadcasts to .* \(3, 4\)"),
    ((X, X), {"potential": torch.zeros(4, 1)}, ValueError, "potential must have a shape"),
    ((X, X), {"center": X[0], "teacher_temperature": None}, ValueError, "center and potential belong to logits"),
    ((X, X), {"weight": torch.ones(4)}, ValueError, r"weight must have shape \(3,\), got \(4,\)"),
    ((X, X), {"ignore_diagonal": True}, ValueError, "ignore_diagonal=True leaves no pair"),
    ((X, X), {"heads": [2, 1]}, ValueError, "heads must be sizes of at least 1 that add up to the 4 columns"),
    ((X, X), {"heads": 4}, TypeError, "heads must be a list of whole numbers"),
    ((X, X), {"reduction": "batchmean"}, ValueError, "reduction must be one of"),
    ((X, X.clone().requires_grad_()), {}, NotImplementedError, "teacher must not require a gradient"),
    ((X, X), {"weight": torch.ones(3, requires_grad=True)}, NotImplementedError, "weight must not require a gradient"),
]


@pytest.mark.parametrize("given, how, kind, words", REFUSED, ids=[words[:40] for *_, words in REFUSED])
def test_refusals(given, how, kind, words):
    with pytest.raises(kind, match=f"^soft_cross_entropy: {words}"):
        soft_cross_entropy(*given, **how)
