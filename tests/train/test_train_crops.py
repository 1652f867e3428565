"""DINO, iBOT and SwAV in ``fastssl train``: training for real, resume to the same bits, the picture of attention, options."""

import pytest
import torch

from tests.support.rotation import of_today
from tests.support.training import assert_resumes_bit_for_bit, needs_train, train_briefly, write_grey_classes

pytestmark = [needs_train, pytest.mark.usefixtures("one_thread")]
NEW = ("dino", "ibot", "swav")
LEAST = 0.15  # gain in kNN accuracy over the untrained encoder whose batch norms have seen the data


@pytest.mark.parametrize("name", of_today(NEW, 3))
def test_training_beats_the_untrained_encoder(name):
    """A quarter of the photographs' crops; kNN on held-out ones."""
    fewer = {} if name == "swav" else {"out_dim": 256}
    found = train_briefly(name, epochs=4, batch_size=64, image_size=24, local_crops=2, **fewer)
    assert found.losses[-1] < found.losses[0] - 0.05
    assert found.after["knn"] > found.before["knn"] + LEAST
    assert found.after["std"] > found.before["std"] and found.after["rank"] > found.before["rank"]


OPTIONS = {
    "dino": ["--backbone", "vit", "--patch-size", "4", "--warmup-teacher-temperature", "0.03", "--frozen", "0.3"],
    "ibot": ["--separate-heads", "--centering", "center"],
    "swav": ["--queue-size", "24", "--queue-start", "0.2"],
}


@pytest.mark.parametrize("name", of_today(NEW, 3))
def test_a_run_stopped_at_any_step_resumes_bit_for_bit(name, tmp_path, capsys):
    """Weights, teacher, step, centres, queue and pointer of a run that was not interrupted; schedules have the trainer's steps."""
    write_grey_classes(tmp_path / "images")
    where = ["--data", f"folder:{tmp_path / 'images'}", "--image-size", "16", "--batch-size", "8"]
    state = assert_resumes_bit_for_bit([name, *where, *OPTIONS[name]], tmp_path, capsys, said=("kNN", "std"))
    assert (tmp_path / "whole" / "attention.png").exists() == (name == "dino")
    assert int(state["method.step"]) == 9
    if name == "swav":
        assert int(state["method.queue_seen"]) == 72 and int(state["method.queue_pointer"]) == 0


def test_attention_is_that_of_the_last_block():
    """Of the built-in transformer, and of one whose class token looks at a single patch."""
    from fastssl.methods import VisionTransformer
    from fastssl.train.attention import class_attention

    backbone = VisionTransformer(8, 2, 8, 2, 2, class_token=True)
    images = torch.rand(3, 3, 8, 8)
    shares = class_attention(backbone, images)
    x = torch.cat([backbone.cls_token.expand(3, -1, -1), backbone.patch_embed(images)], 1) + backbone.pos_embed
    block = backbone.blocks[1]
    qkv = block.attn.qkv(block.norm1(backbone.blocks[0](x))).view(3, 17, 3, 2, 4)
    for head in (0, 1):
        q, k = qkv[:, 0, 0, head], qkv[:, :, 1, head]
        expected = (torch.einsum("nd,ntd->nt", q, k) / 2).softmax(1)[:, 1:]
        expected = (expected / expected.amax(1, keepdim=True)).view(3, 4, 4)
        torch.testing.assert_close(shares[:, head], expected)
    assert class_attention(VisionTransformer(8, 2, 8, 1, 2), images) is None


def test_the_options_of_the_methods_with_crops(capsys):
    from fastssl.__main__ import main

    for method, wanted in {
        "dino": ["--local-crops", "--local-size", "--out-dim", "--teacher-temperature", "--centering", "(default: center)"],
        "ibot": ["--mask-share", "--koleo-weight", "--separate-heads", "(default: sinkhorn)"],
        "swav": ["--prototypes", "--queue-size", "--queue-start"],
    }.items():
        with pytest.raises(SystemExit):
            main(["train", method, "--help"])
        said = " ".join(capsys.readouterr().out.split())
        assert all(option in said for option in wanted) and f"runs/{method}" in said
    for line, words in (
        ("swav --momentum 0.9", "--momentum"),
        ("dino --data digits --backbone vit --local-size 6", "--local-size 6: --backbone vit takes no such crops"),
        ("dino --data digits --local-size 64", "--local-size: must be at most 32, the side of the large crops, got 64"),
        ("swav --data digits --local-min-scale 0.9", "--local-min-scale: must be at most --min-scale 0.4, got 0.9"),
        ("ibot --data digits --backbone vit --patch-size 32 --image-size 32", "--image-size"),
        ("dino --local-crops 0 --local-size 16", "--local-size: a run with --local-crops 0 does not use it"),
        ("ibot --local-crops 0 --local-min-scale 0.1", "--local-min-scale: a run with --local-crops 0 does not use it"),
        ("swav --local-crops 0 --local-size 16", "--local-size: a run with --local-crops 0 does not use it"),
        ("swav --queue-start 0.3", "--queue-start: a run with --queue-size 0 does not use it"),
        (
            "swav --data digits --epochs 2 --queue-size 2689",
            "--queue-size 2689: is never full, with 2688 images before the last of 22 ",
        ),
        ("swav --data digits --queue-size 9 --queue-start 1", "--queue-start 1: the queue is not used, since none of 88 steps"),
        ("ibot --patch-weight 0 --separate-heads", "--separate-heads: a run with --patch-weight 0 does not use it"),
        (
            "dino --temperature-warmup 0 --warmup-teacher-temperature 0.02",
            "--warmup-teacher-temperature: a run with --temperature-warmup 0 does not use it",
        ),
        (
            "ibot --data digits --temperature-warmup 0.5",
            "--temperature-warmup: a run does not use it without a difference between --warmup-teacher-temperature and",
        ),
        ("dino --centering mean", "--centering"),
    ):
        assert main(["train", *line.split()]) == 2 and words in capsys.readouterr().err
