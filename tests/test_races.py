"""``python -m tests.races`` runs in an environment of its own, before a release and before a GPU is used. What would stop it there
and can be seen here: a kernel that changed where a fault is to be planted."""

import ast

import pytest

pytest.importorskip("triton")

from tests.races.faults import FAULTS, changed


@pytest.mark.parametrize("name", FAULTS)
def test_faults_can_be_planted(name):
    module, _, old, new, *_ = FAULTS[name]
    assert ast.dump(ast.parse(changed(module, old, new))) != ast.dump(ast.parse(changed(module, old, old)))
