"""The sparse gradients of ``word_pairs`` under DistributedDataParallel in two processes: gradients and steps of one process with
the joined batch."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fastssl.functional import word_pairs
from fastssl.optim import SparseAdam
from tests.support.processes import run_processes

pytestmark = pytest.mark.usefixtures("one_thread")

#: Words, targets and negatives of four pairs: some words in both processes, some in one, some in none.
IDS = torch.tensor([[3, 3, 5, 1], [2, 0, 2, 8], [1, 4, 7, 7]])
WORDS = {"inputs": [1, 3, 5], "outputs": [0, 1, 2, 4, 7, 8]}


class Pairs(nn.Module):
    """The tables are embeddings with ``sparse=True``, from which DistributedDataParallel knows that their gradients are sparse."""

    def __init__(self):
        super().__init__()
        for k, name in enumerate(WORDS):
            table = torch.randn(9, 4, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
            self.add_module(name, nn.Embedding.from_pretrained(table, freeze=False, sparse=True))

    def forward(self, words, targets, negatives):
        return word_pairs(self.inputs.weight, self.outputs.weight, words, targets, negatives[:, None])


def _check(rank: int, world: int) -> None:
    model, alone = Pairs(), Pairs()
    wrapped = DistributedDataParallel(model)
    optimizers = [SparseAdam(each.parameters(), 0.1) for each in (model, alone)]
    for _ in range(3):
        wrapped(*IDS[:, 2 * rank : 2 * rank + 2]).backward()
        alone(*IDS).backward()
        for name, words in WORDS.items():
            mine, whole = (each.get_submodule(name).weight.grad for each in (model, alone))
            assert mine.is_sparse and mine.coalesce().indices().tolist() == [words]
            torch.testing.assert_close(mine.to_dense(), whole.to_dense())
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for mine, whole in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(mine, whole)


def test_two_processes_are_one_with_the_joined_batch(tmp_path):
    run_processes(_check, 2, tmp_path)
