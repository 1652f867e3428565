"""Training steps before and after fastssl: both sides take the same steps, nothing wrong is timed, every part is accounted for."""

import json
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks.core.accuracy import Errors
from benchmarks.steps import __main__ as steps
from benchmarks.steps import contrast as steps_contrast
from benchmarks.steps import mae as steps_mae
from benchmarks.steps import report as steps_report
from benchmarks.steps.clock import Clock
from benchmarks.steps.common import AFTER, BEFORE, Checked, Pair, Setting, Side, cached_step, library, pictures, rows_of_pairs

AT = Setting(steps.SMALL, "cpu", torch.float32)
METHODS = {case.name: case.method for case in steps.CASES}
PARTS = {
    "moco": {"momentum", "encoder", "loss", "queue", "optimizer"},
    "mae": {"embed", "encoder", "restore", "decoder", "loss", "optimizer"},
    "simclr": {"encoder", "loss", "optimizer"},
    "clip": {"encoder", "loss", "optimizer"},
}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def plain_losses(monkeypatch):
    """The eager forms stand for the libraries, whose import takes seconds."""
    monkeypatch.setattr(steps_contrast, "library", lambda peer, form, constants, eager: ("eager", eager))


def command(tmp_path, *names, **options) -> tuple[int, dict]:
    argv = [*names, "--out", str(tmp_path), "--device", "cpu"]
    for name, value in options.items():
        argv += [f"--{name}", str(value)]
    return steps.main(argv), steps_report.read(tmp_path / "steps.json")


# --- the methods ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_every_step_is_measured_and_reported(name, tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "MOST_ROUNDS", 2)
    code, found = command(tmp_path, name)
    (entry,) = found["cases"]
    assert (code, entry["status"], entry["reason"]) == (0, "ok", "")
    assert entry["size"] == {"batch": 16, "micro": 8, "image": 32, "queue": 64, "tokens": 8, "small": True}
    assert set(entry["gate"]) == set(entry["first_loss"]) == set(entry["sides"]) == {BEFORE, AFTER}
    for side in entry["sides"].values():
        assert set(side["parts_ms"]) == PARTS[name] and side["rounds"] == 2
        assert set(entry["replaced"]) <= PARTS[name] and set(side["uses"]) <= PARTS[name]
        assert all(ms > 0 for ms in side["parts_ms"].values())
        assert 0 < side["loss_share"] <= side["replaced_share"] < 1
        assert "peak_mb" not in side
        assert 0 < len(side["kernels"]) <= steps.PROFILED and sum(k["share"] for k in side["kernels"]) <= 1 + 1e-6
    text = (tmp_path / "steps.md").read_text()
    assert steps_report.table(found) in text and steps_report.parts_table(entry) in text
    assert steps_report.table(found).count("\n") == 2
    assert steps_report.profiles(found).count(", batch 16, ") == 2


@pytest.mark.parametrize("name", METHODS)
def test_both_sides_take_the_same_steps(name, monkeypatch):
    """What a step leaves behind, weights, teacher, queue, optimizer, is in the losses that follow."""
    monkeypatch.setattr(steps_contrast, "MOMENTUM", 0.5)
    monkeypatch.setattr(steps_contrast, "sgd", lambda module: torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9))
    monkeypatch.setattr(steps_mae, "_ADAMW", {**steps_mae._ADAMW, "lr": 1e-3})
    torch.manual_seed(0)
    pair = METHODS[name](AT, Clock("cpu"))
    before, after = ([float(side.step()) for _ in range(4)] for side in pair.sides.values())
    assert after == pytest.approx(before, rel=1e-4)
    assert len({round(value, 4) for value in before}) > 1, "a loss that stays shows nothing"


def test_a_queue_without_pushes_is_seen_in_the_losses(monkeypatch):
    monkeypatch.setattr(steps_contrast, "queue_push_", lambda *_: None)
    pair = METHODS["moco"](AT, Clock("cpu"))
    before, after = ([float(side.step()) for _ in range(4)] for side in pair.sides.values())
    assert after[-1] != pytest.approx(before[-1], rel=1e-3)


@pytest.mark.parametrize("norm_pix_loss", (False, True))
def test_the_repositorys_forward_is_mae(norm_pix_loss):
    model = steps_mae.build(AT).double()
    model.norm_pix_loss = norm_pix_loss
    images, noise = pictures(AT, 3, 0).double(), torch.rand(3, model.num_patches)
    results = [forward(model, images, noise) for forward in (steps_mae.repository_forward, steps_mae.our_forward)]
    weights = [p for p in model.parameters() if p.requires_grad]
    gradients = [torch.autograd.grad(loss, weights) for loss in results]
    torch.testing.assert_close(*results, rtol=1e-12, atol=0)
    for before, after in zip(*gradients, strict=True):
        torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-12)


def test_cached_gradients_are_those_of_the_whole_batch():
    towers = [(nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 4)).double(), torch.randn(10, 5).double()) for _ in range(2)]
    loss = lambda x, y: torch.logsumexp(x @ y.T, (0, 1))  # noqa: E731
    whole = loss(*(encoder(rows) for encoder, rows in towers))
    weights = [p for encoder, _ in towers for p in encoder.parameters()]
    expected = torch.autograd.grad(whole, weights)
    at = replace(AT, size=replace(AT.size, micro=3))
    torch.testing.assert_close(cached_step(at, Clock("cpu"), towers, loss), whole.detach())
    for weight, gradient in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient)


def test_pictures_and_rows_differ_from_each_other():
    images = pictures(AT, 300, 0, channels_last=True)
    assert images.is_contiguous(memory_format=torch.channels_last) and images.flatten(1).std(1).min() > 0.1
    again, other = (pictures(AT, 300, seed, channels_last=True) for seed in range(2))
    assert torch.equal(images, again) and not torch.equal(images, other)
    assert torch.cdist(images.flatten(1), images.flatten(1)).add(torch.eye(300) * 99).min() > 1
    rows = rows_of_pairs(AT, 64, ("q", "k"))
    similar = torch.nn.functional.cosine_similarity(rows["q"][:, None], rows["k"][None], dim=2)
    assert list(rows) == ["q", "k"] and 0.2 < similar.diagonal().mean() < 0.5 and abs(similar.mean()) < 0.1


def test_library_names_what_it_stands_for(monkeypatch):
    monkeypatch.undo()
    eager = object()
    name, call = library("siglip_kernel", "siglip", {}, eager)
    assert (call is eager) == name.startswith("eager PyTorch (")
    name, call = library("eager", "no such form", {}, eager)
    assert call is eager and name == "eager PyTorch (eager: KeyError)"


# --- what is wrong, late or too large -------------------------------------------------------------------------------------


def toy(at: Setting, clock: Clock, wrong: str = "", after: float = 1.0, reserve=lambda micro: None) -> Pair:
    def side(value: float) -> Side:
        def step():
            clock.switch("loss")
            reserve(at.size.micro)
            clock.switch("optimizer")
            return torch.tensor(value)

        return Side({"loss": "toy"}, step)

    errors = {BEFORE: Errors(0.0, 0.0), AFTER: Errors(0.0, 0.0)}
    return Pair({BEFORE: side(1.0), AFTER: side(after)}, ("loss",), lambda: Checked(errors, wrong))


def use(monkeypatch, **methods) -> None:
    """Cases with these methods, by name."""

    def named(name, method):
        method = (lambda made: lambda at, clock: made(at, clock))(method)
        method.__name__ = name
        return method

    cases = tuple(steps.Case(named(name, m), name, steps.SMALL, 0.0) for name, m in methods.items())
    monkeypatch.setattr(steps, "CASES", cases)
    monkeypatch.setattr(steps, "NAMES", tuple(methods))


@pytest.mark.parametrize(
    ("name", "module", "function"),
    (
        ("moco", steps_contrast, "moco_loss"),
        ("mae", steps_mae, "our_forward"),
        ("simclr", steps_contrast, "nt_xent"),
        ("clip", steps_contrast, "clip_loss"),
    ),
)
def test_a_wrong_loss_gets_no_time(name, module, function, tmp_path, monkeypatch):
    right = getattr(module, function)
    monkeypatch.setattr(module, function, lambda *args, **options: 1.0001 * right(*args, **options))
    code, found = command(tmp_path, name)
    (entry,) = found["cases"]
    assert code == 1 and entry["status"] == "wrong" and entry["reason"].startswith("after: loss is")
    assert "sides" not in entry and entry["reason"] in (tmp_path / "steps.md").read_text()


def test_first_losses_that_differ_get_no_time(tmp_path, monkeypatch):
    use(monkeypatch, apart=lambda at, clock: toy(at, clock, after=1.1), gated=lambda at, clock: toy(at, clock, wrong="after: grad"))
    code, found = command(tmp_path)
    assert code == 1 and [entry["status"] for entry in found["cases"]] == ["wrong", "wrong"]
    assert [entry["reason"] for entry in found["cases"]] == ["first losses are 1 and 1.1", "after: grad"]
    assert not any("sides" in entry for entry in found["cases"])


@pytest.mark.parametrize(("fits", "status", "micro"), ((8, "ok", 8), (4, "ok", 4), (2, "ok", 2), (1, "out of memory", 2)))
def test_a_piece_that_does_not_fit_is_halved(fits, status, micro, tmp_path, monkeypatch):
    def reserve(count):
        if count > fits:
            raise torch.OutOfMemoryError("out of memory")

    use(monkeypatch, large=lambda at, clock: toy(at, clock, reserve=reserve))
    _, found = command(tmp_path)
    assert [(entry["status"], entry["size"]["micro"]) for entry in found["cases"]] == [(status, micro)]


def fails(at, clock):
    raise RuntimeError("an illegal memory access\nwas encountered")


def test_a_failure_costs_the_others_nothing(tmp_path, monkeypatch):
    use(monkeypatch, first=fails, second=toy)
    code, found = command(tmp_path)
    assert code == 1
    states = [(entry["name"], entry["status"], entry["reason"]) for entry in found["cases"]]
    assert states == [("first", "failed", "RuntimeError: an illegal memory access"), ("second", "ok", "")]


def test_after_a_broken_device_the_others_go_on_in_a_new_process(tmp_path, monkeypatch):
    started = []

    def execv(program, argv):
        started.append(argv)
        raise SystemExit

    use(monkeypatch, first=toy, second=fails, third=toy, fourth=toy)
    monkeypatch.setattr(steps, "usable", lambda device: False)
    monkeypatch.setattr(steps.os, "execv", execv)
    with pytest.raises(SystemExit):
        command(tmp_path, seconds=100)
    (argv,) = started
    assert argv[1:5] == ["-m", "benchmarks.steps", "third", "fourth"] and argv[5:9] == ["--out", str(tmp_path), "--device", "cpu"]
    assert argv[9] == "--seconds" and 0 < int(argv[10]) <= 100
    assert [entry["name"] for entry in steps_report.read(tmp_path / "steps.json")["cases"]] == ["first", "second"]


def test_results_of_an_earlier_command_stay(tmp_path, monkeypatch):
    use(monkeypatch, first=toy, second=toy)
    command(tmp_path, "first")
    _, found = command(tmp_path, "second")
    assert [entry["name"] for entry in found["cases"]] == ["first", "second"]
    use(monkeypatch, first=fails, second=toy)
    _, found = command(tmp_path, "first")
    assert [(entry["name"], entry["status"]) for entry in found["cases"]] == [("second", "ok"), ("first", "failed")]
    other = json.loads((tmp_path / "steps.json").read_text())
    other["machine"]["name"] = "another"
    (tmp_path / "steps.json").write_text(json.dumps(other))
    _, found = command(tmp_path, "second")
    assert [entry["name"] for entry in found["cases"]] == ["second"], "machines are not mixed in one file"


def test_without_time_every_case_says_so(tmp_path):
    code, found = command(tmp_path, seconds=0)
    assert code == 0 and [entry["name"] for entry in found["cases"]] == list(steps.NAMES)
    assert {entry["status"] for entry in found["cases"]} == {"no time left"}
    assert steps_report.table(found).count("\n") == 1


def test_rounds_stop_in_time_but_never_without_one():
    clock = Clock("cpu")
    pair = toy(AT, clock)
    assert {len(r) for r in steps.rounds_of(pair, clock, until=0.0).values()} == {1}
    assert {len(r) for r in steps.rounds_of(pair, clock, until=float("inf")).values()} == {steps.MOST_ROUNDS}


def test_unknown_names_and_files_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        command(tmp_path, "dino")
    assert "unknown step 'dino'; choose from moco, mae, simclr, clip" in capsys.readouterr().err
    for name in ("other.json", "steps.json"):
        (tmp_path / name).write_text('{"schema": 1, "kind": "loss"}')
    for refused in (lambda: steps_report.read(tmp_path / "other.json"), lambda: command(tmp_path, "moco")):
        with pytest.raises(ValueError, match="of loss, this code reads 1 of steps"):
            refused()


def test_the_cases_of_a_gpu():
    """Pieces divide their batch; what is expected of all cases fits into the default time."""
    assert list(METHODS) == list(steps.NAMES) == ["moco", "mae", "simclr", "clip"]
    assert all(case.size.batch % case.size.micro == 0 and not case.size.small for case in steps.CASES)
    assert sum(10 * case.expected_s + 10 for case in steps.CASES) < steps.TOTAL_S
    run = steps.Run(None, "cuda", False, 1.0)
    assert run.cases(("mae", "moco")) == [case for case in steps.CASES if case.name in ("mae", "moco")]
    assert run.dtype == torch.bfloat16 and replace(run, device="cpu").dtype == torch.float32
    assert all(case.size.small for case in replace(run, quick=True).cases(steps.NAMES))


# --- the clock --------------------------------------------------------------------------------------------------------


@contextmanager
def counted(clock: Clock):
    """Every change of part takes 1 s."""
    count = iter(range(1000))
    clock._now = lambda: float(next(count))
    yield clock


def test_a_border_is_crossed_forward_and_backward():
    with counted(Clock("cpu")) as clock:
        clock.begin()
        clock.switch("encoder")
        w = torch.ones(3, requires_grad=True)
        x = w * 2
        clock.border(x, "encoder", "loss")
        loss = (x * x).sum()
        with clock.aside("queue"):
            pass
        assert [s.part for s in clock._segments] == ["encoder", "loss", "queue", "loss"]
        loss.backward()
        clock.switch("optimizer")
        reading = clock.finish()
    assert reading.parts_ms == {"encoder": 2000.0, "loss": 2000.0, "queue": 1000.0, "optimizer": 1000.0}
    assert reading.ms == 6000.0 and reading.peak_mb is None and reading.parts_peak_mb == {}


def test_a_border_without_gradient_is_crossed_once():
    clock = Clock("cpu")
    clock.switch("a")
    clock.border(torch.ones(2), "a", "b")
    assert [s.part for s in clock._segments] == ["a", "b"]


@pytest.mark.parametrize("name", METHODS)
def test_the_parts_of_a_step_make_up_its_time(name):
    clock = Clock("cpu")
    for side in METHODS[name](AT, clock).sides.values():
        _, reading = steps.take(clock, side)
        assert sum(reading.parts_ms.values()) == pytest.approx(reading.ms, rel=1e-9)
        assert set(reading.parts_ms) == PARTS[name]


class Device:
    """Memory of a device as torch counts it; events are places in a list."""

    def __init__(self, monkeypatch):
        self.now = self.most = self.events = self.slept = 0
        functions = {
            "memory_allocated": lambda: self.now,
            "max_memory_allocated": lambda: self.most,
            "reset_peak_memory_stats": lambda: setattr(self, "most", self.now),
            "synchronize": lambda: None,
            "_sleep": lambda cycles: setattr(self, "slept", self.slept + 1),
            "Event": self.event,
        }
        for name, function in functions.items():
            monkeypatch.setattr(torch.cuda, name, function)

    def event(self, enable_timing: bool):
        made = SimpleNamespace(at=None)

        def record():
            made.at = self.events = self.events + 1

        made.record, made.elapsed_time = record, lambda other: float(other.at - made.at)
        return made

    def take(self, megabytes: int) -> None:
        self.now += megabytes * 10**6
        self.most = max(self.most, self.now)


def test_memory_of_parts_is_above_their_start(monkeypatch):
    device = Device(monkeypatch)
    device.take(1000)
    clock = Clock("cuda")
    clock.begin(memory=True)
    clock.switch("encoder")
    device.take(50)
    clock.switch("loss")
    device.take(8)
    with clock.aside("queue"):
        device.take(5)
        device.take(-5)
    device.take(20)
    device.take(-26)
    clock.switch("encoder")
    device.take(10)
    device.take(-62)
    reading = clock.finish()
    assert reading.peak_mb == 78 and reading.parts_peak_mb == {"encoder": 50, "loss": 28, "queue": 5}
    assert reading.ms == 5 and reading.parts_ms == {"encoder": 2, "loss": 2, "queue": 1}


def test_the_host_is_ahead_where_time_is_taken_and_counters_are_left_alone(monkeypatch):
    device = Device(monkeypatch)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: pytest.fail("counters take the host's time"))
    clock = Clock("cuda")
    slept = device.slept
    clock.begin()
    clock.switch("loss")
    assert clock.finish().peak_mb is None and device.slept == slept + 1
    clock.begin(memory=True)
    assert device.slept == slept + 1
