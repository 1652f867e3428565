"""Clips: what is rendered is what a camera on the path sees, halves do not meet, views move as one, video files are read."""

import builtins
import math

import numpy as np
import pytest
import torch

from tests.support.training import needs_train

pytestmark = [needs_train, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def data():
    from fastssl.train.clips import load_clips

    return load_clips("clips")


def sampled(picture: np.ndarray, x: float, y: float) -> np.ndarray:
    """The picture (H, W, 3) at a place between its pixels, from the four around it."""
    left, top = math.floor(x), math.floor(y)
    value = np.zeros(3)
    for row, share in ((top, top + 1 - y), (top + 1, y - top)):
        for column, part in ((left, left + 1 - x), (left + 1, x - left)):
            inside = picture[min(row, picture.shape[0] - 1), min(column, picture.shape[1] - 1)]
            value += share * part * inside.astype(np.float64)
    return value


def test_frames_are_what_the_camera_sees_and_the_halves_of_a_picture_do_not_meet(data):
    from fastssl.train.clips import MOTIONS
    from fastssl.train.data import PHOTOS_SPLIT, shipped_photos

    pictures, seen = list(shipped_photos().values()), set()
    for train, half in ((True, data.train), (False, data.test)):
        clips, labels, motions, paths = half.__getitems__(list(range(0, len(half), 7)))
        assert clips.dtype == torch.uint8 and clips.shape[1:] == (9, 3, 32, 32) and paths.shape[1:] == (9, 4)
        for clip, label, motion, path in zip(clips[::5], labels[::5], motions[::5], paths[::5].double(), strict=True):
            seen.add(MOTIONS[motion])
            split = int(pictures[label].shape[1] * PHOTOS_SPLIT)
            for t, row, column in ((0, 0, 31), (4, 17, 3), (8, 31, 31), (8, 0, 0)):
                x, y, scale, turn = path[t].tolist()
                across, down = column - 15.5, row - 15.5
                at = x + scale * (math.cos(turn) * across - math.sin(turn) * down)
                below = y + scale * (math.sin(turn) * across + math.cos(turn) * down)
                assert (at < split) if train else (at > split - 0.01)
                expected = sampled(pictures[label], at, below)
                assert np.abs(clip[t, :, row, column].double().numpy() - expected).max() < 1.5
    assert seen == set(MOTIONS)


def test_clips_are_the_same_every_time_and_have_as_many_of_each_motion(data):
    from fastssl.train.clips import load_clips

    again = load_clips("clips")
    assert torch.equal(again.train.clips, data.train.clips) and torch.equal(again.test.paths, data.test.paths)
    assert data.train.motions.bincount().tolist() == [360] * 4 and data.test.labels.bincount().tolist() == [20] * 18
    assert "1440 training and 360 test clips of 9 frames" in data.summary()


def test_all_motions_but_a_throw_go_faster_and_faster(data):
    from fastssl.train.clips import MOTIONS

    for kind, motion in enumerate(MOTIONS[:3]):
        paths = data.train.paths[data.train.motions == kind].double()
        way = torch.cat([paths[..., :2], paths[..., 2:3].log(), paths[..., 3:]], 2).diff(dim=1).norm(dim=2)
        assert (way[:, 1:] > way[:, :-1]).all(), motion


def test_a_view_crops_and_mirrors_all_frames_of_a_clip_alike():
    from fastssl.train.clips import ClipViews

    torch.manual_seed(0)
    frame = torch.randint(0, 256, (6, 1, 3, 20, 20), dtype=torch.uint8)
    views = ClipViews(16)(frame.expand(-1, 4, -1, -1, -1))
    assert torch.equal(views, views[:, :1].expand_as(views)) and views.min() >= 0 and views.max() <= 1
    whole = ClipViews(20, min_scale=1.0)(frame)
    flipped = [torch.allclose(view, clip.flip(-1) / 255, atol=1e-5) for view, clip in zip(whole, frame, strict=True)]
    same = [torch.allclose(view, clip / 255, atol=1e-5) for view, clip in zip(whole, frame, strict=True)]
    assert all(a != b for a, b in zip(flipped, same, strict=True)) and any(flipped) and any(same)


def test_other_sizes_and_names_are_served_or_refused():
    from fastssl.train import UsageError
    from fastssl.train.clips import load_clips

    small = load_clips("clips", size=12, frames=5)
    assert small.test.clips.shape == (360, 5, 3, 12, 12) and small.stills.image_size == 12
    with pytest.raises(UsageError, match="--image-size 200: a camera path leaves a half of the picture"):
        load_clips("clips", size=200)
    with pytest.raises(UsageError, match="unknown clips 'photos'"):
        load_clips("photos")


def write_video(path, seconds: float, rate: int = 20) -> None:
    """A video whose frame t has t // 10 in the brightness of its left half, t % 10 in that of its right half."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for t in range(round(seconds * rate)):
            halves = np.repeat([t // 10, t % 10], 32) * 20 + 20
            pixels = np.broadcast_to(halves.astype(np.uint8)[None, :, None], (48, 64, 3))
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        file.mux(stream.encode())


def numbers(clips: torch.Tensor) -> list[list[int]]:
    """The numbers t of the frames of clips (B, T, 3, R, R) of ``write_video``."""
    left, right = (((part.float().mean((2, 3, 4)) - 20) / 20).round() for part in (clips[..., :8], clips[..., -8:]))
    return (10 * left + right).long().tolist()


def test_video_files_are_cut_into_clips_by_time(tmp_path, capsys):
    from fastssl.train import UsageError
    from fastssl.train.clips import load_clips
    from fastssl.train.data import batches, reading_warnings

    for name, seconds in (("a/long.mp4", 5.0), ("b/short.avi", 0.3)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_video(tmp_path / name, seconds)
    (tmp_path / "b" / "broken.mp4").write_bytes(b"no video")
    for name in ("b/._long.mp4", ".cache/a.mp4", "__MACOSX/a.mp4"):  # no data
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((tmp_path / "b" / "short.avi").read_bytes())
    whole = (tmp_path / "a" / "long.mp4").read_bytes()
    data = load_clips(f"folder:{tmp_path}", size=16, frames=5)
    assert "1 of 3 videos cannot be used and is skipped: broken.mp4" in capsys.readouterr().err
    assert data.class_names == ("a", "b") and "2 videos" in data.summary()
    assert (len(data.train), len(data.test)) == (8 + 1, 2)
    clips, labels, motions, paths = next(iter(batches(data.train, 9)))
    assert clips.shape == (9, 5, 3, 20, 20) and labels.tolist() == [0] * 8 + [1]
    assert paths[0, 0].tolist() == [0, 0, 1, 0] and not motions.any()
    assert numbers(clips) == [list(range(10 * i, 10 * i + 10, 2)) for i in range(8)] + [[0, 2, 3, 4, 5]]  # 0.1 s is two frames
    assert numbers(data.test.__getitems__([1, 0])[0]) == [[90, 92, 94, 96, 98], [80, 82, 84, 86, 88]]
    (tmp_path / "a" / "long.mp4").write_bytes(whole[: len(whole) // 8])
    assert len(data.train.__getitems__([0, 8])[0]) == 1
    assert any("1 of 11 files cannot be used" in line and "long.mp4" in line for line in reading_warnings(data))
    (tmp_path / "none").mkdir()
    with pytest.raises(UsageError, match="no video files in it"):
        load_clips(f"folder:{tmp_path / 'none'}")


def test_without_pyav_the_extra_is_named(tmp_path, monkeypatch):
    from fastssl.train import UsageError
    from fastssl.train.clips import load_clips

    own = builtins.__import__

    def without(name, *more):
        if name == "av":
            raise ImportError("No module named 'av'")
        return own(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"pip install av, or the extra \"fastssl\[video\]\""):
        load_clips(f"folder:{tmp_path}")
