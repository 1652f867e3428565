"""``fastssl completion``: the script for bash completes commands, methods, options and words. zsh and fish were tried by hand."""

import shutil
import subprocess
from importlib.util import find_spec

import pytest

from fastssl import completion
from fastssl.__main__ import COMMANDS, main
from tests.support.training import needs_train

pytestmark = needs_train
COMPLETED = {  # what is typed, up to the key -> what bash offers
    "fastssl tr": "train",
    "fastssl ru": "runs",
    "fastssl train simc": "simclr simcse",
    "fastssl train simclr --que": "",
    "fastssl train moco --que": "--queue-size",
    "fastssl train moco --no-s": "--no-symmetric",
    "fastssl train simclr --optimizer ": "adamw sgd lars",
    "fastssl train simclr --precision b": "bf16",
    "fastssl train simclr --data digits --ma": "--map",
    "fastssl train simclr --config {here}/opt": "{here}/options.yaml",
    "fastssl eval {here}/opt": "{here}/options.yaml",
    "fastssl runs --sort n": "newest name",
    "fastssl bench nt_": "nt_xent",
    "fastssl completion f": "fish",
}
ASK = """
source "$1"
while IFS= read -r typed; do
  read -ra COMP_WORDS <<< "$typed"
  [[ $typed == *' ' ]] && COMP_WORDS+=("")
  COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMPREPLY=()
  _shtab_fastssl fastssl "${COMP_WORDS[-1]}"
  echo "${COMPREPLY[*]}"
done
"""


def test_each_command_is_completed():
    assert {"train", *completion.parsers()} == set(COMMANDS)


@pytest.mark.skipif(find_spec("shtab") is None or shutil.which("bash") is None, reason="shtab or bash is not installed")
def test_bash_completes(tmp_path, capsys):
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    (tmp_path / "options.yaml").touch()
    typed = "".join(f"{line}\n" for line in COMPLETED).format(here=tmp_path)
    command = ["bash", "--norc", "-c", ASK, "bash", str(tmp_path / "script")]
    said = subprocess.run(command, input=typed, capture_output=True, text=True, check=True).stdout.splitlines()
    assert dict(zip(COMPLETED, said, strict=True)) == {line: words.format(here=tmp_path) for line, words in COMPLETED.items()}
    for shell in ("zsh", "fish"):
        assert main(["completion", shell]) == 0 and "queue-size" in capsys.readouterr().out


def test_a_shell_that_is_not_known(capsys):
    assert main(["completion", "fihs"]) == 2
    assert "SHELL: must be one of bash, zsh, fish, got 'fihs'; did you mean fish?" in capsys.readouterr().err
