"""``python -m tests.races`` runs in an environment of its own, before a release and before a GPU is used. What would stop it there
and can be seen here: a kernel that changed where a fault is to be planted."""

import ast

import pytest

pytest.importorskip("triton")

from tests.races.faults import FAULTS, SHORT_GRID, changed

PLACES = {name: (fault[0], *fault[2:4]) for name, fault in FAULTS.items()} | {"a grid with one program too few": SHORT_GRID}


@pytest.mark.parametrize(("module", "old", "new"), PLACES.values(), ids=PLACES)
def test_faults_can_be_planted(module, old, new):
    assert ast.dump(ast.parse(changed(module, old, new))) != ast.dump(ast.parse(changed(module, old, old)))
