"""The options of the command line: wrong ones are named with what is right, and the help says each default once."""

import re
from types import SimpleNamespace

import pytest

from fastssl.__main__ import main
from tests.support.rotation import of_today
from tests.support.training import needs_train

pytestmark = pytest.mark.usefixtures("one_thread")
WRONG = {
    "trian simclr": "did you mean train?",
    "train simclrr": "did you mean simclr?",
    "train xyz": "known: simclr, supcon",
    "train simclr --dat photos": "unknown option --dat; did you mean --data?",
    "train simclr --batchsize 8": "did you mean --batch-size?\n",
    "train simclr --device cuda": "--accelerator gpu",
    "train simclr --momentum 0.9": "only moco, moco_v3, byol, mean_teacher, dino, ibot, ijepa take it",
    "train --out moco simclr --bn-splits 2": "--bn-splits: only moco takes it",
    "train simclr moco": "one argument too many: 'moco'",
    "train simclr --data photo": "did you mean photos?",
    "train SimCRL": "did you mean simclr?",
    "train simclr --data digits --backbone cnov": "unknown encoder 'cnov'; did you mean conv",
    "train frame_order --data clip": "unknown clips 'clip'; did you mean clips?",
    "train simcse --data sentence": "unknown data set 'sentence'; did you mean sentences?",
    "train simclr --data {here}": "did you mean folder:{here}?",
    "train simclr --data folder:": "--data",
    "train simclr --pixel-range -5,5": "expected one argument; a value that begins with a dash is written --pixel-range=-5,5",
    "train simclr --lr -1e-3": "--lr: expected one argument; a value that begins with a dash is written --lr=-1e-3",
    "train simclr --lr -0.5": "--lr: must be above 0, got -0.5",
    "eval {here} --pixel-range -1000,3000 --map none": "written --pixel-range=-1000,3000",
    "train simclr --out --resume": "--out: expected one argument\n",
    "train simclr --out ''": "--out: must be a path",
    "train simclr --optimizer adam": "did you mean adamw?",
    "train simclr --map tsn": "did you mean tsne?",
    "train simclr --precision 64": "must be one of 32, 16, bf16",
    "train simclr --precision bf17": "did you mean bf16?",
    "train simclr --seed -1": "at least 0",
    "train simclr --seed 4294967296": "--seed: must be at most 4294967295, got 4294967296",
    "train simclr --workers 257": "--workers: must be at most 256, got 257",
    "eval {here} --workers 1000000": "--workers: must be at most 256, got 1000000",
    "train simclr --image-size 8193": "--image-size: must be at most 8192, got 8193",
    "train simclr --data digits --devices 0 --out {here}/run": "--devices: must be at least 1",
    "train simclr --devices ''": "--devices: must name devices, got ''\n",
    "train simclr --accelerator ''": "--accelerator: must name an accelerator, got ''\n",
    "train simclr --strategy ''": "--strategy: must name a strategy, got ''\n",
    "train simclr --strategy fsdp": "--strategy: fsdp cannot be used: a method's teacher, queue and scores need whole weights",
    "train simclr --strategy ddp_spawn": "--strategy: ddp_spawn cannot be used: the history of the run would stay in processes",
    "train simclr --num-nodes 0": "--num-nodes: must be at least 1, got 0",
    "train simclr --data digits --accelerator gup --out {here}/run": "--accelerator gup: must be one of auto, cpu, gpu, cuda, mps",
    "train simclr --data digits --accelerator cdua": "; did you mean cuda?\n",
    "train simclr --data digits --strategy dpp": "--strategy dpp: must be auto or ddp; did you mean ddp?\n",
    "train simclr --data digits --accelerator cpu --devices x": "--devices x: on CPUs it is a number of processes, such as 2\n",
    "train simclr --data digits --patch-size 4": "--patch-size 4: only --backbone vit",
    "train mae --data digits --patch-size 5": "--patch-size 5: must divide",
    "train mae --data digits --image-size 16 --patch-size 16": "--patch-size 16: makes one patch of an image of 16 x 16 pixels",
    "train simmim --data digits --image-size 8 --patch-size 8": "and simmim removes some patches and keeps others",
    "train mae --data digits --image-size 30": "--image-size 30: must be a multiple of 4",
    "train clip --data folder:x": "docs/methods.md",
    "train bert --data x.txt": "docs/methods.md",
    "train inpainting --data digits --sigma 0.9": "--sigma: only --corruption noise uses it, and --corruption is blocks\n",
    "train inpainting --data digits --corruption noise --mask-size 4": "--mask-size: only --corruption blocks uses it, and",
    "train inpainting --mask-ratio 0.25 --data digits --corruption noise": "--mask-ratio: only --corruption blocks uses it, and",
    "train moco --data digits --head linear --hidden-dim 5": "--hidden-dim: only --head mlp uses it, and --head is linear\n",
    "train simclr --data digits --hidden-dim 999999999999": "hidden_dim must be in [1, 2147483648)",
    "train simclr --data digits --hidden-dim 2147483647": "out of memory",
    "eval {here} --device meta": "--device meta: cannot be used here: torch computes nothing on meta on this machine\n",
    "eval {here} --device gpu": "--device gpu: names no device; did you mean cuda?\n",
    "eval {here} --device cdua": "--device cdua: names no device; did you mean cuda?\n",
    "eval {here} --device zzz": "--device zzz: names no device; known: cpu, cuda, mps, xpu\n",
    "eval {here} --device cuda:x": "--device cuda:x: names no device; a number may follow the colon, such as cuda:0\n",
    "bench --device cdua": "--device: must be one of cpu, cuda, got 'cdua'; did you mean cuda?\n",
    "eval ''": "RUN: must be a path",
    "eval /dev/null": "there is no checkpoint in it",
    "info --foo": "--foo",
    "train": "METHOD is missing; fastssl train --help lists the methods\n",
    "export": "RUN and --to are missing; fastssl export --help lists what the command takes\n",
    "--verison": "did you mean --version?\n",
    "bench nt_xnt": "did you mean nt_xent?",
    "bench --rounds 0": "--rounds: must be at least 1",
    "bench --out /dev/null": "--out: is a file, not a directory, got",
    "bench --out=": "--out: must be a path, got ''",
}


@needs_train
@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_option_is_named_with_what_is_right(line, tmp_path, capsys):
    words = [word.strip("'").replace("{here}", str(tmp_path)) for word in line.split()]
    assert main(words) == (1 if "memory" in WRONG[line] else 2)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and WRONG[line].replace("{here}", str(tmp_path)) in said
    assert not (tmp_path / "run" / "last.ckpt").exists()


@needs_train
def test_settings_that_a_run_uses_are_not_refused():
    """Also stored ones that it does not use: only what the command line gives counts."""
    from fastssl.train import UsageError
    from fastssl.train.options import refuse_unused
    from fastssl.train.recipes import RECIPES

    inpainting, moco = (RECIPES[name].settings for name in ("inpainting", "moco"))
    refuse_unused({"sigma", "corruption"}, inpainting(corruption="noise"))
    refuse_unused({"mask_ratio", "mask_size"}, inpainting())
    refuse_unused({"mask_ratio"}, RECIPES["mae"].settings())
    refuse_unused({"hidden_dim"}, moco())
    refuse_unused({"hidden_dim"}, RECIPES["simclr"].settings())
    refuse_unused(set(), moco(head="linear", hidden_dim=7))
    with pytest.raises(UsageError, match="--hidden-dim: only --head mlp"):
        refuse_unused({"hidden_dim"}, moco(head="linear", hidden_dim=7))


@needs_train
def test_eval_refuses_what_a_run_has_no_use_for():
    from fastssl.train import UsageError
    from fastssl.train.options import eval_parser, refuse_unused_of_eval

    for option, value in (("--knn-k", "3"), ("--knn-t", "0.5"), ("--pixel-range", "0,7")):
        given = eval_parser().parse_args(["runs/x", option, value])
        refuse_unused_of_eval(given, "mae")
        for method in ("simcse", "bert", "clip"):
            with pytest.raises(UsageError, match=f"^{option}: RUN runs/x is one of {method}, which does not use it$"):
                refuse_unused_of_eval(given, method)
    refuse_unused_of_eval(eval_parser().parse_args(["runs/x"]), "bert")


@needs_train
def test_wrong_hardware_moves_no_earlier_run(tmp_path, capsys):
    (tmp_path / "last.ckpt").write_bytes(b"weights")
    assert main(["train", "simclr", "--data", "digits", "--devices", "none", "--out", str(tmp_path)]) == 2
    assert "--devices none" in capsys.readouterr().err and (tmp_path / "last.ckpt").exists()


@needs_train
def test_the_help_of_each_method_says_each_default_once():
    from fastssl.train.options import train_parser
    from fastssl.train.recipes import RECIPES

    for method in of_today(RECIPES, 4):
        recipe = RECIPES[method]
        texts = re.split(r"\n  (?=--)", train_parser(method).format_help())
        assert len(texts) > 12
        for text in texts:
            assert text.count("default:") <= 1, (method, text)
        lr = " ".join(next(text for text in texts if text.startswith("--lr")).split())
        given = recipe.settings().lr
        assert ("0.1 for sgd" in lr) if given is None else f"(default: {given})" in lr
        taken = "loop of your own" not in " ".join(texts[1].split())
        assert texts[1].startswith("--data")
        assert taken == (method not in ("clip", "siglip", "simcse", "bert", "word2vec", "gpt", "t5"))


@needs_train
def test_an_option_of_all_methods_finds_the_method():
    from fastssl.train.options import train_options

    given = train_options(["--out", "moco", "--seed", "4294967295", "byol", "--momentum", "0.5", "--precision", "bf16-mixed"])
    assert given["method"] == "byol" and str(given["out"]) == "moco" and given["precision"] == "bf16"
    assert given["seed"] == 2**32 - 1 and "epochs" not in given


@needs_train
def test_no_two_seeds_are_one_run():
    """Torch's generator of the CPU looks at 32 bits: each seed draws other numbers, and so do the epochs of it."""
    import torch

    from fastssl.train.loop import step_seed
    from fastssl.train.options import refused_setting
    from fastssl.train.settings import MOST_SEED

    def first(seed: int) -> int:
        return torch.randint(2**62, (), generator=torch.Generator().manual_seed(seed)).item()

    seeds = (0, 1, 2, 1 << 20, 1 << 21, 1 << 31, MOST_SEED - (1 << 20), MOST_SEED)
    assert first(MOST_SEED + 1) == first(0) and len({first(seed) for seed in seeds}) == len(seeds)
    drawn = {first(step_seed(seed, epoch, rank)) for seed in seeds for epoch in (0, 1, 300) for rank in (0, 3)}
    assert len(drawn) == 6 * len(seeds)
    for seed, taken in ((MOST_SEED, True), (2**63 - 1, True), (2**64, False), (-1, False)):  # of a run of an earlier version
        assert (refused_setting({"method": "simclr", "seed": seed}) is None) == taken


@needs_train
def test_patches_by_image_size():
    from fastssl.train.backbones import tokens_line, vit_patch_size
    from fastssl.train.recipes import RECIPES

    sizes = {16: 4, 32: 4, 64: 4, 68: 4, 72: 8, 100: 4, 128: 8, 224: 16, 256: 16, 384: 32, 1024: 32}
    assert {size: vit_patch_size(size) for size in sizes} == sizes
    for method, patch, tokens, masked in (("mae", None, 196, 16), ("simmim", None, 196, 32), ("simmim", 8, 784, 16)):
        config = RECIPES[method].settings(patch_size=patch)
        built = RECIPES[method].build(config, SimpleNamespace(image_size=224, channels=3))
        side = patch or 16
        assert tokens_line(built) == f"transformer: patches of {side} x {side} pixels, {tokens} tokens an image"
        assert method == "mae" or built.unit * side == masked
    config = RECIPES["simclr"].settings()
    assert tokens_line(RECIPES["simclr"].build(config, SimpleNamespace(image_size=32, channels=3))) is None


def test_a_gpu_that_is_not_there_is_told_from_one_that_fails(monkeypatch):
    from fastssl import _devices

    monkeypatch.setattr(_devices.torch.cuda, "is_available", lambda: True)
    third, failure = _devices.torch.device("cuda", 2), RuntimeError("CUDA error: no kernel image. More about it\nelsewhere")
    for count, words in ((1, "the only GPU is cuda:0"), (2, "the last of 2 GPUs is cuda:1"), (3, "CUDA error: no kernel image")):
        monkeypatch.setattr(_devices.torch.cuda, "device_count", lambda count=count: count)
        assert _devices.why_not(third, failure) == words


def test_a_terminal_gets_lines_that_fit(monkeypatch, capsys):
    """Errors stay whole, because they may hold commands to be copied, and so does what is written to a file."""
    from fastssl import _ending

    text = "  probe " + "0.500 " * 12 + "end"
    for columns, lines in ((40, 3), (200, 1)):
        monkeypatch.setenv("COLUMNS", f"{columns}")
        monkeypatch.setattr(_ending.sys.stdout, "isatty", lambda: True, raising=False)
        _ending.say(text)
        _ending.say(text, error=True)
        said = capsys.readouterr()
        assert said.out.count("\n") == lines and max(map(len, said.out.splitlines())) <= columns and said.err == text + "\n"
        assert said.out.split() == text.split() and all(line.startswith("    0.5") for line in said.out.splitlines()[1:])
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["info"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
    with pytest.raises(SystemExit) as ended:
        main(["help", "info"])
    assert ended.value.code == 0 and capsys.readouterr().out.startswith("usage: fastssl info ")
