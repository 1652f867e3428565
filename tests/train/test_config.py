"""``--config FILE``: options from YAML and JSON, and the ``config.yaml`` of a run, which repeats it."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fastssl.__main__ import main
from fastssl._config import read_options, write_options
from fastssl._ending import UsageError
from fastssl._options import PRINTED
from fastssl.completion import parsers
from tests.support.rotation import of_today
from tests.support.training import assert_same_runs, needs_train

pytestmark = [needs_train, pytest.mark.usefixtures("one_thread")]
HOW = {
    "accelerator": "cpu",
    "devices": "auto",
    "num_nodes": 1,
    "strategy": "auto",
    "precision": "32",
    "workers": None,
    "map": "pca",
}
REFUSED = {
    "epoch: 3": "unknown option epoch; did you mean epochs?",
    "batchsize: 3": "unknown option batchsize; did you mean batch_size?",
    "config: x.yaml": "unknown option config",
    "momentum: 0.9": "momentum: only moco, moco_v3, byol, mean_teacher, dino, ibot, ijepa take it",
    "epochs: 0": "epochs: must be at least 1, got 0",
    "epochs: 2.5": "epochs: must be a whole number, got '2.5'",
    "epochs: [1, 2]": "epochs: must be a whole number, got '1,2'",
    "lr: {peak: 3}": "lr must have one value, or a list of numbers or words",
    "optimizer: adam": "did you mean adamw?",
    "resume: perhaps": "resume: must be true or false, got 'perhaps'",
    "epochs: 3\nepochs: 4": "epochs is there twice",
    "method: simcrl": "unknown method 'simcrl'; did you mean simclr?",
    "- epochs": "must hold lines such as epochs: 20",
    "epochs: [3": "is no YAML: ",
    "epochs: \xff": "is no text in UTF-8",
    "epochs: !!python/object:os.system 3": "epochs must have one value, or a list of numbers or words, got python/object:os.system",
    "epochs: !!set {3}": "epochs must have one value, or a list of numbers or words",
    "? [epochs]\n: 3": "must hold names of options, such as epochs: 20; one of its keys is a list or a mapping",
    f"epochs: {'9' * 400}": "epochs: must be at most 9223372036854775807, got 999",
    "a: " + "[" * 5000: "is nested too deeply",  # also where torch's compiler has raised Python's limit
}


def options_of(folder: Path, text: str, *words: str, name: str = "x.yaml") -> dict:
    from fastssl.train.options import train_options

    (folder / name).write_text(text, encoding="utf-8")
    return train_options([*words, "--config", str(folder / name)])


@pytest.mark.parametrize("text", REFUSED)
def test_a_wrong_file_is_refused_in_one_line(text, tmp_path, capsys):
    file = tmp_path / "x.yaml"
    file.write_bytes(text.encode("latin-1"))
    method = [] if "method" in text else ["simclr"]
    assert main(["train", *method, "--config", str(file), "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"fastssl train: error: --config {file}: ") and said.count("\n") == 1 and REFUSED[text] in said
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_is_not_there_or_too_large(tmp_path, capsys):
    assert main(["eval", str(tmp_path), "--config", str(tmp_path / "no.yaml")]) == 2
    assert "no.yaml: cannot be read: No such file or directory" in capsys.readouterr().err
    (tmp_path / "large.json").write_text(" " * (1 << 20) + "{}")
    assert main(["train", "simclr", "--config", str(tmp_path / "large.json")]) == 2
    assert "has more than 1 MiB" in capsys.readouterr().err
    assert main(["train", "simclr", "--config", "/dev/zero"]) == 2
    assert "has more than 1 MiB" in capsys.readouterr().err
    assert main(["eval", str(tmp_path / "two\nlines")]) == 2
    assert "two\\nlines: no such file or directory\n" in capsys.readouterr().err


def test_the_command_line_wins(tmp_path):
    text = "method: moco\nepochs: 3\nlr: 1e-3\nsymmetric: true\nqueue-size: null\nout: here\n"
    given = options_of(tmp_path, text, "--epochs", "5")
    assert (given["method"], given["epochs"], given["lr"], given["symmetric"]) == ("moco", 5, 1e-3, True)
    assert given["out"] == Path("here") and "queue_size" not in given and "config" not in given
    assert options_of(tmp_path, text, "--no-symmetric")["symmetric"] is False
    assert options_of(tmp_path, "method: moco\nepochs: 3", "byol")["method"] == "byol"


def test_json_is_read_without_pyyaml(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "yaml", None)
    values = {"epochs": 3, "lr": 1e-3, "pixel_range": [-5, 9.5], "precision": "bf16", "resume": False, "seed": None}
    given = options_of(tmp_path, json.dumps(values), "simclr", name="x.json")
    assert (given["epochs"], given["lr"], given["pixel_range"], given["precision"]) == (3, 1e-3, (-5.0, 9.5), "bf16")
    assert given["resume"] is False and "seed" not in given
    for text, why in (('{"epochs": 3', "is no JSON: "), ("[3]", "must hold an object"), ('{"lr": [[3]]}', "must have one value")):
        (tmp_path / "x.json").write_text(text)
        assert main(["train", "simclr", "--config", str(tmp_path / "x.json")]) == 2
        assert why in capsys.readouterr().err
    (tmp_path / "x.yaml").write_text("epochs: 3")
    assert main(["train", "simclr", "--config", str(tmp_path / "x.yaml")]) == 2
    assert "needs PyYAML" in capsys.readouterr().err


def test_eval_takes_a_file(tmp_path):
    from fastssl.train.options import eval_parser

    write_options(tmp_path / "x.yaml", "", {"few_shot": True, "labels": [5, 1], "map": "none"})
    given = eval_parser().parse_args_and_file(["runs/mine", "--config", str(tmp_path / "x.yaml"), "--map", "pca"])
    assert given.few_shot and given.labels == [1, 5] and given.map == "pca" and given.run == Path("runs/mine")


FILES = {  # of the other commands: a file, words of the command line, and what becomes of them
    "export": ("to: timm\nout: there", "runs/a --to onnx", {"to": "onnx", "out": Path("there")}),
    "report": ("out: a.html", "runs/a runs/b", {"out": Path("a.html"), "runs": [Path("runs/a"), Path("runs/b")]}),
    "compare": ("out: a.pdf\njson: a.json", "runs/a --out b.pdf", {"out": Path("b.pdf"), "json": Path("a.json")}),
    "runs": ("sort: size\njson: true", "elsewhere", {"sort": "size", "json": PRINTED, "folder": Path("elsewhere")}),
    "bench": (
        "shapes: [16x8, 32x8]\nquick: true\ndtype: [float32, bfloat16]",
        "nt_xent --no-memory",
        {"shapes": ["16x8", "32x8"], "quick": True, "dtype": ["float32", "bfloat16"], "workloads": ["nt_xent"]},
    ),
}


@pytest.mark.parametrize("command", FILES)
def test_the_other_commands_take_a_file(command, tmp_path):
    text, words, wanted = FILES[command]
    (tmp_path / "x.yaml").write_text(text)
    given = vars(parsers()[command]().parse_args_and_file([*words.split(), "--config", str(tmp_path / "x.yaml")]))
    assert {name: given[name] for name in wanted} == wanted
    (tmp_path / "x.yaml").write_text("ouut: there")
    with pytest.raises(UsageError, match="unknown option ouut"):
        parsers()[command]().parse_args_and_file(["nt_xent", "--config", str(tmp_path / "x.yaml")])


def test_every_command_takes_a_file_or_says_why_not(capsys):
    for command, make in parsers().items():
        takes = any("--config" in action.option_strings for action in make()._actions)
        assert takes == (command not in ("info", "completion")), command
        if not takes:
            assert main([command, *(["bash"] if command == "completion" else []), "--config", "x.yaml"]) == 2
            assert f"fastssl {command}: error: --config: {command} has " in capsys.readouterr().err


def test_the_settings_of_each_method_come_back_from_its_file(tmp_path):
    """Those that a run uses, also where they are not the default and where one has a name that YAML would take for something."""
    from fastssl.train.options import refuse_unused, train_options
    from fastssl.train.recipes import RECIPES
    from fastssl.train.repeat import write_config

    for method in of_today(RECIPES, 4):
        settings = RECIPES[method].settings
        config = replace(settings(), lr=1e-05, epochs=7, data="folder:/true: [no]\n#", seed=2**32 - 1)
        write_config(tmp_path, config, HOW)
        given = train_options(["--config", str(tmp_path / "config.yaml"), "--out", "other"])
        names = {name for name in vars(config) if name in given}
        again = settings(**{name: given[name] for name in names})
        assert again == config and given["map"] == "pca" and given["workers"] is None
        refuse_unused(names, again)


def test_a_run_writes_the_file_that_repeats_it(grey_run, tmp_path, monkeypatch, capsys):
    """Also from another folder, and where the run was told its folder of images from where it ran."""
    from fastssl.train.repeat import options_of_run

    file = grey_run / "config.yaml"
    entries = read_options(file)
    assert entries["data"] == f"folder:{grey_run.parent / 'images'}" and entries["batch_size"] == "8" and "out" not in entries
    monkeypatch.chdir(grey_run.parent)
    from fastssl.train.recipes import RECIPES

    told = RECIPES["simclr"].settings(data="folder:images")
    assert options_of_run(told, HOW)["data"] == entries["data"]
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--config", str(file), "--out", "again"]) == 0
    assert re.search(r"^epoch   2/2  loss \d.*  [\d,.]+ images/s  \d+\.\d GiB$", capsys.readouterr().out, re.M)
    assert_same_runs(tmp_path / "again", grey_run)
    assert read_options(tmp_path / "again" / "config.yaml") == entries
