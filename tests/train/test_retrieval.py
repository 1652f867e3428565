"""``fastssl eval --retrieve``: precision and mean average precision of cases worked out by hand, and the picture."""

import pytest
import torch

from tests.support.training import needs_train, write_grey_classes

pytestmark = [needs_train, pytest.mark.usefixtures("one_thread")]

ANGLES = (0.0, 0.2, 0.4, 0.6, 0.8)  # of the bank's features: the nearest one to angle 0 is the first


def at(*angles: float) -> torch.Tensor:
    """Features of these directions; their lengths must not matter."""
    turned = torch.tensor(angles)
    return torch.stack([turned.cos(), turned.sin()], 1) * torch.linspace(1, 3, len(angles))[:, None]


def test_scores_of_a_case_worked_out_by_hand():
    """Bank classes by nearness to the first query: 0 1 0 0 1. Average precision of class 0: (1/1 + 2/3 + 3/4) / 3.

    The second query, of class 1, meets them the other way round: 1 0 0 1 0, (1/1 + 2/4) / 2.
    """
    from fastssl.train.retrieval import retrieval_scores

    bank = at(*ANGLES), torch.tensor([0, 1, 0, 0, 1])
    first, second = (at(0.0), torch.tensor([0])), (at(0.9), torch.tensor([1]))
    averages = (1 + 2 / 3 + 3 / 4) / 3, (1 + 2 / 4) / 2
    cases = (first, (1, 1 / 2, 2 / 3, 3 / 4, 3 / 5), averages[0]), (second, (1, 1 / 2, 1 / 3), averages[1])
    for query, precisions, average in cases:
        for k, wanted in enumerate(precisions, 1):
            assert retrieval_scores(query, bank, k) == pytest.approx((wanted, average))
    both = torch.cat([first[0], second[0], at(0.5)]), torch.tensor([0, 1, 7])  # class 7 is not in the bank: not asked for
    assert retrieval_scores(both, bank, 2) == pytest.approx((0.5, sum(averages) / 2))


def test_scores_in_chunks_are_those_of_one(monkeypatch):
    from fastssl.train import retrieval

    bank = torch.randn(50, 4), torch.arange(5).repeat(10)
    queries = torch.randn(23, 4), torch.arange(23) % 5
    whole = retrieval.retrieval_scores(queries, bank, 7)
    monkeypatch.setattr(retrieval, "KNN_CHUNK", 200)
    assert retrieval.retrieval_scores(queries, bank, 7) == pytest.approx(whole)


def test_one_query_of_each_class():
    from fastssl.train.retrieval import one_of_each

    labels = torch.tensor([3, 1, 1, 3, 0, 2])
    assert one_of_each(labels, torch.tensor([1, 2, 3]), most=10).tolist() == [1, 5, 0]
    assert one_of_each(labels, labels, most=2).tolist() == [4, 0]


def test_rows_of_the_embeddings_find_their_images(tmp_path):
    """A file that cannot be read has no row: the third image is then the second row."""
    from fastssl.train.data import load_data
    from fastssl.train.evaluate import centre, embed
    from fastssl.train.retrieval import read_rows

    write_grey_classes(tmp_path)
    half = load_data(f"folder:{tmp_path}", 16).train
    half.paths[1].write_bytes(b"no image")
    rows, _ = embed(torch.nn.Flatten(), half, 16)
    assert len(rows) == len(half) - 1
    images = read_rows(half, torch.tensor([0, 1, 20]), 16)
    assert images.shape == (3, 3, 16, 16) and torch.equal(images.flatten(1), rows[[0, 1, 20]])
    assert torch.equal(images[1], centre(half.__getitems__([2])[0], 16)[0] / 255)


def test_numbers_and_picture_of_a_run(own_grey_run, capsys):
    from fastssl.__main__ import main
    from fastssl.train.scores import read_scores

    assert main(["eval", str(own_grey_run), "--retrieve", "--top", "3", "--workers", "0"]) == 0
    said = capsys.readouterr()
    lines = {
        line[:26].strip(): [float(word) for word in line.split()[-2:]] for line in said.out.splitlines() if "precision" in line
    }
    assert lines.keys() == {"precision@3", "mean average precision"} and said.err == ""
    assert all(0.4 < value <= 1 for values in lines.values() for value in values)
    assert (own_grey_run / "retrieval.png").stat().st_size > 5_000
    kept = {table.task: dict(table.rows) for table in read_scores(own_grey_run).tables}["retrieval"]
    assert {name: [round(value, 3) for value in values] for name, values in kept.items()} == lines
    page = (own_grey_run / "report.html").read_text()
    assert "<h3>Retrieval</h3>" in page and "<h2>Nearest neighbours</h2>" in page and "precision@3" in page
    assert main(["eval", str(own_grey_run), "--top", "3"]) == 2 and "--top: is used with --retrieve only" in capsys.readouterr().err
