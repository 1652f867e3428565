"""Clips for the methods that learn from video: frames (B, T, 3, R, R) uint8, with labels (B,), motions (B,) and paths (B, T, 4).

``clips``        rendered from the pictures of ``photos`` by known camera paths; class = picture; train left, test right
``folder:PATH``  video files, read by PyAV; class = subfolder; the last fifth of each video is the test part (``videos.py``)

A rendered frame is what a camera sees that looks straight at the picture: pixel (x, y) of the frame, counted from its middle, is
the picture at c_t + s_t R(a_t) (x, y), interpolated bilinearly. A path holds (c_x, c_y, s, a) of each frame, in pixels and radians.
With u = t / (T - 1), S the side of a frame and a sign, direction and reach that are drawn for each clip:

    pan     c moves by u^2 reach, at most S / 2              zoom    s = exp(u^2 reach), at most 1.5 or its inverse
    turn    a = u^2 reach, at most a right angle             throw   c_x moves by u reach, c_y by (2 u^2 - u) S / 2

All motions begin slowly and get faster, as under gravity, so that time has a direction. No path leaves its half of the picture.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl._options import closest
from fastssl.train import UsageError
from fastssl.train.augment import as_float
from fastssl.train.data import PHOTOS_SPLIT, ImageData, photos, shipped_photos
from fastssl.train.samples import Samples
from fastssl.train.videos import VideoClips, video_clips

MOTIONS = ("pan", "zoom", "turn", "throw")
CLIPS_SEED = 0
COUNTS = {True: 80, False: 20}  # training and test clips of each picture


class TensorClips(Samples):
    """Clips in memory: clips (N, T, 3, S, S) uint8, labels (N,) and motions (N,) int64, paths (N, T, 4) float32.

    ``class_names`` are those of the labels.
    """

    def __init__(self, clips: Tensor, labels: Tensor, motions: Tensor, paths: Tensor, class_names: tuple[str, ...]):
        self.clips, self.labels, self.motions, self.paths, self.class_names = clips, labels, motions, paths, class_names

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        index = torch.as_tensor(indices)
        return self.clips[index], self.labels[index], self.motions[index], self.paths[index]


@dataclass(frozen=True)
class ClipData:
    """Two halves of clips, and the still photographs on which the frame encoder is compared with those of the image methods."""

    name: str
    train: TensorClips | VideoClips
    test: TensorClips | VideoClips
    stills: ImageData
    image_size: int
    frames: int
    mirror: bool = True
    notes: tuple[str, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.train.class_names

    def summary(self) -> str:
        counts = f"{len(self.train)} training and {len(self.test)} test clips of {self.frames} frames"
        return "; ".join([f"{counts} of {self.image_size} x {self.image_size}", *self.notes])


def motion_of(kind: str, size: int, frames: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Paths (count, frames, 4) of a kind of motion that begin at the origin."""
    u = np.linspace(0, 1, frames)
    reach, sign = rng.uniform(0.5, 1, (count, 1)), rng.choice([-1.0, 1.0], (count, 1))
    angle = rng.uniform(-np.pi, np.pi, (count, 1))
    still = np.zeros((count, frames))
    x, y, scale, turn = still, still, still + 1, still
    if kind == "pan":
        x, y = (size / 2 * reach * part * u**2 for part in (np.cos(angle), np.sin(angle)))
    elif kind == "zoom":
        scale = np.exp(sign * reach * np.log(1.5) * u**2)
    elif kind == "turn":
        turn = sign * reach * np.pi / 2 * u**2
    else:
        x, y = sign * reach * size / 2 * u, still + (2 * u**2 - u) * size / 2
    return np.stack([x, y, scale, turn], axis=2)


def placed(paths: np.ndarray, size: int, box: tuple[int, int, int, int], rng: np.random.Generator) -> np.ndarray:
    """``paths`` moved to random places at which no frame leaves the ``box`` (first and last x, first and last y), or ValueError."""
    reach = paths[..., 2] * (size - 1) / 2 * (np.abs(np.cos(paths[..., 3])) + np.abs(np.sin(paths[..., 3])))
    moved = paths.copy()
    for axis, (first, last) in enumerate((box[:2], box[2:])):
        low, high = first + (reach - paths[..., axis]).max(1), last - (reach + paths[..., axis]).max(1)
        if (high < low).any():
            raise ValueError("a path does not fit")
        moved[..., axis] += rng.uniform(low, high)[:, None]
    return moved


def render(picture: np.ndarray, paths: np.ndarray, size: int) -> Tensor:
    """The frames (N, T, 3, size, size) uint8 that a camera sees of a picture (H, W, 3) on paths (N, T, 4)."""
    height, width = picture.shape[:2]
    x, y, scale, turn = torch.from_numpy(paths)[..., None, None].unbind(2)
    steps = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    across, down = steps.view(1, 1, 1, size), steps.view(1, 1, size, 1)
    columns = x + scale * (turn.cos() * across - turn.sin() * down)
    rows = y + scale * (turn.sin() * across + turn.cos() * down)
    grid = torch.stack([2 * columns / (width - 1) - 1, 2 * rows / (height - 1) - 1], dim=-1).float()
    image = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float()
    seen = F.grid_sample(image[None], grid.view(1, -1, size, 2), mode="bilinear", align_corners=True)
    return seen.round_().to(torch.uint8).view(3, *grid.shape[:2], size, size).permute(1, 2, 0, 3, 4).contiguous()


def clips(size: int = 32, frames: int = 9) -> ClipData:
    """Rendered clips, the same ones every time: 80 training and 20 test clips of each picture, all motions equally often."""
    pictures, rng, taken = shipped_photos(), np.random.default_rng(CLIPS_SEED), {}
    for train, count in COUNTS.items():
        for name, picture in pictures.items():
            height, width = picture.shape[:2]
            split = int(width * PHOTOS_SPLIT)
            box = (0, split - 1, 0, height - 1) if train else (split, width - 1, 0, height - 1)
            paths = np.concatenate([motion_of(kind, size, frames, count // len(MOTIONS), rng) for kind in MOTIONS])
            try:
                taken[train, name] = placed(paths, size, box, rng)
            except ValueError:
                half = f"a half of the picture '{name}' ({width} x {height})"
                raise UsageError(f"--image-size {size}: a camera path leaves {half}") from None

    def half_of(train: bool) -> TensorClips:
        seen = torch.cat([render(picture, taken[train, name], size) for name, picture in pictures.items()])
        paths = torch.from_numpy(np.concatenate([taken[train, name] for name in pictures])).float()
        labels = torch.arange(len(pictures)).repeat_interleave(COUNTS[train])
        motions = torch.arange(len(MOTIONS)).repeat_interleave(COUNTS[train] // len(MOTIONS)).repeat(len(pictures))
        return TensorClips(seen, labels, motions, paths, tuple(pictures))

    return ClipData("clips", half_of(True), half_of(False), photos(size), size, frames)


def load_clips(spec: str, size: int | None = None, frames: int = 9) -> ClipData:
    """The clips that ``--data`` names.

    Args:
        spec: "clips" or "folder:PATH".
        size: side S of the frames in pixels, by default 32.
        frames: frames T of a clip.

    Returns:
        A ``ClipData``. Its halves ``train`` and ``test`` answer ``__getitems__(indices)`` with one batch: clips (B, T, 3, R, R)
        uint8, labels (B,), motions (B,) and paths (B, T, 4).

    Raises:
        UsageError: there are no such clips, or they cannot be read. Its text names the option of the command line.

    Examples:
        >>> data = load_clips("clips", size=16, frames=5)
        >>> [tuple(part.shape) for part in data.train.__getitems__([0, 1])]
        [(2, 5, 3, 16, 16), (2,), (2,), (2, 5, 4)]
    """
    if spec.startswith("folder:"):
        train, test, notes = video_clips(Path(spec.removeprefix("folder:")).expanduser(), size or 32, frames)
        return ClipData(spec, train, test, photos(size or 32), size or 32, frames, notes=notes)
    if spec != "clips":
        hint = f"; did you mean folder:{spec}?" if Path(spec).is_dir() else closest(spec, ["clips"])
        raise UsageError(f"--data: unknown clips '{spec}'{hint or '; known: clips, folder:PATH'}")
    return clips(size or 32, frames)


class ClipViews(nn.Module):
    """clips (B, T, 3, R, R), uint8 or float in [0, 1] -> (B, T, 3, S, S) float32: one crop of each clip, mirrored or not.

    All frames of a clip are cropped in the same way, so that what moves is the camera alone.

    Args:
        size: side S in pixels.
        min_scale: smallest share of a frame's area that a crop keeps.
        mirror: whether half of the clips are flipped.

    Examples:
        >>> ClipViews(16)(torch.zeros(2, 5, 3, 20, 20, dtype=torch.uint8)).shape
        torch.Size([2, 5, 3, 16, 16])
    """

    def __init__(self, size: int, *, min_scale: float = 0.5, mirror: bool = True):
        super().__init__()
        self.size, self.min_scale, self.mirror = size, min_scale, mirror

    def forward(self, clips: Tensor) -> Tensor:
        count, frames, channels = clips.shape[:3]
        draws = torch.rand(4, count, device=clips.device)
        side = (self.min_scale + (1 - self.min_scale) * draws[0]).sqrt()
        flip = torch.where(draws[3] < 0.5, -1.0, 1.0) if self.mirror else torch.ones_like(side)
        shifts = (1 - side) * (2 * draws[1:3] - 1)
        none = torch.zeros_like(side)
        affine = torch.stack([side * flip, none, shifts[0], none, side, shifts[1]], dim=1).view(-1, 2, 3)
        grid = F.affine_grid(affine, [count, 1, self.size, self.size], align_corners=False)
        stacked = as_float(clips).flatten(1, 2)  # one grid serves all frames of a clip
        cropped = F.grid_sample(stacked, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return cropped.view(count, frames, channels, self.size, self.size)


def track_patches(clips: Tensor, paths: Tensor, times: Tensor, size: int) -> Tensor:
    """Patches of one place of the picture that a camera sees, in two frames of each clip.

    The place is in the middle between the centres of both frames, so that a patch of half a frame's side is seen in both.

    Args:
        clips: (B, T, 3, R, R), uint8 or float in [0, 1].
        paths: (B, T, 4), the camera in each frame: centre, scale and turn.
        times: (B, 2) int64, of the two frames.
        size: side of a patch in pixels.

    Returns:
        (B, 2, 3, size, size) float32, interpolated bilinearly. The patches are not turned with the camera.

    Examples:
        >>> clips, paths = torch.rand(2, 5, 3, 16, 16), torch.tensor([0.0, 0.0, 1.0, 0.0]).expand(2, 5, 4)
        >>> track_patches(clips, paths, torch.tensor([[0, 4], [1, 3]]), 8).shape
        torch.Size([2, 2, 3, 8, 8])
    """
    rows = torch.arange(len(clips), device=clips.device)[:, None]
    frames, path = as_float(clips[rows, times]), paths[rows, times]
    way = path[..., :2].mean(1, keepdim=True) - path[..., :2]  # to the place, in pixels of the picture
    cosine, sine, scale = path[..., 3].cos(), path[..., 3].sin(), path[..., 2]
    place = (
        torch.stack([cosine * way[..., 0] + sine * way[..., 1], cosine * way[..., 1] - sine * way[..., 0]], -1) / scale[..., None]
    )
    steps = torch.arange(size, device=clips.device) - (size - 1) / 2
    across, down = place[..., 0, None] + steps, place[..., 1, None] + steps
    grid = torch.stack([across[..., None, :].expand(-1, -1, size, -1), down[..., None].expand(-1, -1, -1, size)], -1)
    grid = (2 * grid / frames.shape[-1]).flatten(0, 1)
    return F.grid_sample(frames.flatten(0, 1), grid, padding_mode="border", align_corners=False).unflatten(0, times.shape)
