"""Video files as clips of frames (T, 3, R, R) uint8, decoded by PyAV when they are asked for; R is ``round(1.25 * S)``.

Each video is cut into clips that follow one another, of frames ``STEP`` seconds apart, or closer where a whole video is shorter.
The last fifth of the clips of each video is its test part. A class is a subfolder. The frames of a clip are the first ones at
their times or after them.
"""

from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastssl.train import UsageError, warn
from fastssl.train.folder import FolderImages, files_below, unread_line, why
from fastssl.train.layout import counted
from fastssl.train.read import Misfit, Picture, to_square

SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm"}
STEP = 0.1  # seconds between two frames of a clip
TEST_SHARE = 5  # one clip in five, the last ones of each video
MARGIN = 1.25  # frames are decoded this much larger than the view, so that crops keep detail


def pyav() -> Any:
    """The module ``av``, or an error that names the extra."""
    try:
        import av
    except ImportError as error:
        raise UsageError(f'--data: video files need PyAV ({error}): pip install av, or the extra "fastssl[video]"') from None
    return av


def last_time(path: Path) -> float:
    """Seconds from the first to the last frame of a video, as its file says; Misfit where it does not say, or has no video."""
    with pyav().open(str(path)) as file:
        if not file.streams.video:
            raise Misfit("no video in it")
        stream = file.streams.video[0]
        seconds = stream.duration * stream.time_base if stream.duration else (file.duration or 0) / 1_000_000
        rate = stream.average_rate or stream.guessed_rate
    if not seconds or not rate:
        raise Misfit("it does not say how long it is")
    return max(0.0, float(seconds - 1 / rate))


def frames_of(path: Path, times: list[float], size: int) -> Tensor:
    """The frames (T, 3, size, size) uint8 of a video at ``times`` in seconds, in order; the last one again behind its end."""
    found: list[Tensor] = []
    with pyav().open(str(path)) as file:
        stream = file.streams.video[0]
        start = stream.start_time or 0
        if times[0] > 0:
            file.seek(start + int(times[0] / stream.time_base), stream=stream)
        for frame in file.decode(stream):
            now = float((frame.pts - start) * stream.time_base) + 1e-3
            if now >= times[len(found)]:
                picture = to_square(frame.to_image(), size)
                due = sum(time <= now for time in times[len(found) :])
                found += [picture] * due
            if len(found) == len(times):
                break
    if len(found) < len(times) - 1:
        raise Misfit(f"it ends before {times[len(found)]:.1f} s")
    return torch.stack(found + found[-1:] * (len(times) - len(found)))


class VideoClips(FolderImages):
    """Clips of video files: each begins at ``starts`` (N,) seconds of the file in ``paths``, with frames ``steps`` (N,) apart.

    A batch is clips (B, T, 3, R, R), labels (B,), motions (B,), which are all 0, and paths (B, T, 4) of a camera that stands still,
    because nothing is known of it. A clip that cannot be read is left out and marked in ``corrupt``.
    """

    def __init__(
        self,
        paths: list[Path],
        starts: list[float],
        steps: list[float],
        labels: list[int],
        class_names: tuple[str, ...],
        size: int,
        frames: int,
    ):
        super().__init__(paths, labels, class_names, size)
        self.starts, self.steps, self.frames = starts, steps, frames

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        decoded = [(clip, index) for index in indices if (clip := self._decode(index)) is not None]
        index = torch.tensor([index for _, index in decoded], dtype=torch.int64)
        empty = torch.empty(0, self.frames, 3, self.size, self.size, dtype=torch.uint8)
        clips = torch.stack([clip for clip, _ in decoded]) if decoded else empty
        paths = torch.tensor([0.0, 0.0, 1.0, 0.0]).expand(len(index), self.frames, 4)
        return clips, self.labels[index], torch.zeros_like(index), paths

    def read(self, index: int) -> Picture:
        """The frames of a clip, in place of a picture's pixels."""
        start, step = self.starts[index], self.steps[index]
        frames = frames_of(self.paths[index], [start + i * step for i in range(self.frames)], self.size)
        return Picture(frames, "video", (self.size, self.size))

    def reason(self, file: str) -> str:
        try:
            for index in range(len(self)):
                if str(self.paths[index]) == file and self.corrupt[index]:
                    self.read(index)
        except Exception as error:
            return video_fault(error)
        return "it could not be read before"


def video_fault(error: Exception) -> str:
    """Why a video cannot be used, for a person."""
    return why(error).replace("image", "video")


def video_clips(root: Path, size: int, frames: int) -> tuple[VideoClips, VideoClips, tuple[str, ...]]:
    """The training and test clips of the videos below ``root``, and what the first line of a run says of them.

    Warns of files that cannot be read.
    """
    pyav()
    if not root.is_dir():
        raise UsageError(f"--data folder:{root}: there is no such folder")
    files = files_below(root, SUFFIXES)
    if not files:
        raise UsageError(f"--data folder:{root}: no video files in it ({', '.join(sorted(SUFFIXES))})")
    lengths, failed = {}, []
    for path in files:
        try:
            lengths[path] = last_time(path)
        except Exception as error:  # of FFmpeg for damaged files
            failed.append((path.name, video_fault(error)))
    if not lengths:
        raise UsageError(f"--data folder:{root}: none of {len(files)} videos can be read: {failed[0][0]}: {failed[0][1]}")
    if failed:
        warn(unread_line(len(failed), len(files), "videos", failed[:3]))
    names = tuple(sorted({class_of(path, root) for path in lengths}))
    halves: dict[bool, list[tuple[Path, float, float, int]]] = {True: [], False: []}
    for path, end in lengths.items():
        step = min(STEP, end / (frames - 1))
        count = max(1, int((end + step) / (frames * step) + 1e-6)) if step else 1
        kept = count - count // TEST_SHARE
        starts = list(accumulate([frames * step] * (count - 1), initial=0.0))
        for i, start in enumerate(starts):
            halves[i < kept].append((path, start, step, names.index(class_of(path, root))))

    def half(train: bool) -> VideoClips:
        paths, starts, steps, labels = (list(part) for part in zip(*halves[train], strict=True)) if halves[train] else ([],) * 4
        return VideoClips(paths, starts, steps, labels, names, round(size * MARGIN), frames)

    return half(True), half(False), (counted(len(lengths), "video"),)


def class_of(path: Path, root: Path) -> str:
    """The subfolder of ``root`` that a file lies in, or "" where it lies in none."""
    inside = path.relative_to(root).parts
    return inside[0] if len(inside) > 1 else ""
