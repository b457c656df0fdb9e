"""Whether a rendered clip may be delivered, judged beside its two pictures."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ffmpeg

from ltx.errors import ToolFailed
from ltx.film.ffmpeg import read_picture
from ltx.job import CLIP_FRAMES, FPS
from ltx.settings import Size
from ltx.text import to_number

# The longer sides, in pixels, of the pictures a clip is judged by: sampled sparsely for its grain,
# averaged for everything else.
GRAIN_SIDE, LOOK_SIDE = 480, 64
# Mean change, as a share of full scale, below which a frame counts as the one before.
STILL_CHANGE = 0.001
GRAIN_FLOOR = 8
# No image is missed, and no still is wrong, where both images are as good as one.
ALIKE = 0.9
# Mean levels above black below which a colour shift alone may blacken an image.
DARK = 16.0
# Levels between the tenth and the nine tenths of a picture below which it is of one colour: what
# normalize would make of it is noise. As many levels away from it are not like it at all.
FLAT, UNLIKE = 4.0, 32.0
# Fewer levels than this, and the noise of encoding outweighs what a frame still shows of an image.
FADED = 8.0
# Chosen by bench/clip_gate on one half of its photographs. In brackets what both halves
# measured: the good clip nearest to the limit, then the bad clip nearest to it among the kinds that
# this check is there for. Blur, a colour shift and crf 28 are in the good ones.
LEAST_LIKE = 0.5  # (0.67; a wrong image 0.11)
LEAST_NEARER = 0.4  # (0.62; a last image half ignored 0.22)
LEAST_LIGHT = 0.35  # (0.54; three quarters black 0.18)
MOST_JUMP = 5.0  # (1.6; a cut over 40 % of the way 13.5)
MOST_GRAIN = 1.6  # (1.0; a third noise 2.1)
MOST_BACK = 0.3  # (0.17; the first image back before the last one comes 0.54)
MOST_STILL = 2.0  # seconds (1.0; half a clip 2.3)


@dataclass(frozen=True)
class ClipMeasures:
    """What a raw clip looks like beside its two images. Likeness is 1 at most: see compare."""

    frames: int
    first: float  # likeness of the first frame and the first image
    last: float  # likeness of the last frame and the last image
    alike: float  # likeness of the two images
    depart: float  # how much nearer the first frame is to the first image: 1 is there, -1 the other
    arrive: float  # the same of the last frame and the last image
    back: float  # how much of the first image returns late in the clip
    light: float  # of the darkest frame, as a multiple of the darker image unless that is dark
    still: float  # seconds of the longest stretch in which nothing moves
    jump: float  # the greatest change between two frames, as a multiple of the clip's great ones
    grain: float  # detail in the plainest parts of the roughest frame, against the rougher image

    def rounded(self) -> dict[str, float]:
        return {name: round(value, 2) for name, value in dataclasses.asdict(self).items()}


class FailedCheck(NamedTuple):
    """A check that a clip did not pass."""

    check: str
    measured: float
    limit: float

    def __str__(self) -> str:
        side = "at least" if self.measured < self.limit else "at most"
        return f"{self.check} is {self.measured:.3g}, allowed is {side} {self.limit:g}"


def measure_clip(clip: Any, first: Path, last: Path, size: Size) -> Any:
    """Prints what read_measures reads, for image, clip and image, frame by frame, three times.

    First beside the first image, then beside the last, then the fine detail alone.

    clip: its frames, as ffmpeg.read_clip gives them.
    size: of the clip and of both images.
    """
    side = max(size)
    mid = Size(*(max(32, round(length * min(1, GRAIN_SIDE / side) / 2) * 2) for length in size))
    low = Size(*(max(16, round(length * LOOK_SIDE / side / 2) * 2) for length in size))

    def shrink(stream: Any) -> Any:
        # Points, not averages, because averages know no noise.
        colours = {"flags": "neighbor", "out_color_matrix": "bt709", "out_range": "tv"}
        stream = stream.filter("scale", *mid, **colours).filter("format", "yuv420p")
        return stream.filter("extractplanes", "y").filter("setsar", 1)

    def simplify(stream: Any) -> Any:
        stream = stream.filter("format", "rgb24").filter("normalize", smoothing=0, independence=0)
        return stream.filter("format", "gray")

    pictures = [shrink(read_picture(path, "png_pipe")).split() for path in (first, last)]
    begin, end = pictures[0][0], pictures[1][0]
    joined = ffmpeg.concat(begin, shrink(clip), end, v=1, a=0)
    all_frames = joined.filter("settb", f"1/{FPS}").filter("setpts", "N").split()
    rough = ffmpeg.filter(
        [all_frames[0], all_frames[1].filter("boxblur", 1)], "blend", all_mode="difference"
    )
    rough = (
        rough.filter("lut", c0="4*val").filter("scale", *low, flags="area").filter("signalstats")
    )
    stats = all_frames[2].filter("scale", *low, flags="area").filter("signalstats")
    stats = stats.filter("freezedetect", n=STILL_CHANGE, d=0.25)
    halves = simplify(stats).split()
    sides = [simplify(picture[1].filter("scale", *low, flags="area")) for picture in pictures]
    pairs = [ffmpeg.filter([halves[n], sides[n]], "ssim") for n in (0, 1)]
    both = ffmpeg.concat(*pairs, rough, v=1, a=0).filter("settb", f"1/{FPS}").filter("setpts", "N")
    return both.filter("metadata", mode="print", file="-").output("-", f="null")


def read_metadata(text: str) -> list[dict[str, float]]:
    """The numbers that ffmpeg's metadata filter printed, frame by frame, without `lavfi.`."""
    frames: list[dict[str, float]] = []
    for line in text.splitlines():
        if line.startswith("frame:"):
            frames.append({})
        elif frames and (found := re.fullmatch(r"lavfi\.(\S+)=(\S+)", line)):
            frames[-1][found[1]] = to_number(found[2])
    return frames


def read_measures(text: str) -> ClipMeasures:
    """Raises ToolFailed when there are no frames to speak of."""
    printed = read_metadata(text)
    count = len(printed) // 3
    if count < 5 or len(printed) % 3:
        raise ToolFailed(f"there are {max(0, count - 2)} frames to look at")
    head = compare(printed[:count], printed[0])
    tail = compare(printed[count : 2 * count], printed[count - 1])
    alike, near = head[-1], 1 - min(head[-1], ALIKE)
    light = [frame["signalstats.YAVG"] - 8 for frame in printed[:count]]
    darker = min(light[0], light[-1])
    # The tenth of the picture with the least detail: noise spares no place, texture does.
    grain = [frame["signalstats.YLOW"] + GRAIN_FLOOR for frame in printed[2 * count :]]
    changes = [frame["signalstats.YDIF"] for frame in printed[2 : count - 1]]
    return ClipMeasures(
        frames=count - 2,
        first=head[1],
        last=tail[-2],
        alike=alike,
        depart=(head[1] - tail[1]) / near,
        arrive=(tail[-2] - head[-2]) / near,
        back=measure_return(head[1:-1], tail[1:-1], [contrast(f) for f in printed[1 : count - 1]]),
        light=min(light[1:-1]) / darker if darker >= DARK else 1.0,
        still=measure_still(printed[:count]),
        jump=max(changes) / (sorted(changes)[len(changes) * 9 // 10] + 1),
        grain=max(grain[1:-1]) / max(grain[0], grain[-1]),
    )


def compare(frames: Sequence[Mapping[str, float]], image: Mapping[str, float]) -> list[float]:
    """Each frame's likeness to an image: SSIM, or for an image of one colour their nearness."""
    if contrast(image) >= FLAT:
        return [frame["ssim.Y"] for frame in frames]
    light = image["signalstats.YAVG"]
    apart = [abs(frame["signalstats.YAVG"] - light) + contrast(frame) for frame in frames]
    return [max(0.0, 1 - levels / UNLIKE) for levels in apart]


def contrast(frame: Mapping[str, float]) -> float:
    return frame["signalstats.YHIGH"] - frame["signalstats.YLOW"]


def measure_return(
    head: Sequence[float], tail: Sequence[float], contrasts: Sequence[float]
) -> float:
    """By how much the clip comes back to its first image in the second half, 0 if it does not.

    head, tail, contrasts: each frame's likeness to the first and to the last image, and its own
    contrast; a frame that has faded shows no image, so it cannot be a return.
    """
    half = len(head) // 2
    lowest = itertools.accumulate(head, min)
    late = list(zip(head, tail, lowest, contrasts, strict=True))[half:]
    shown = [min(near - far, near - low) for near, far, low, levels in late if levels >= FADED]
    return max([0.0, *shown])


def measure_still(frames: Sequence[Mapping[str, float]]) -> float:
    """Seconds of the longest stretch that freezedetect found."""
    longest, started = 0.0, None
    for frame in frames:
        started = frame.get("freezedetect.freeze_start", started)
        longest = max(longest, frame.get("freezedetect.freeze_duration", 0.0))
        if "freezedetect.freeze_end" in frame:
            started = None
    return longest if started is None else max(longest, len(frames) / FPS - started)


def limits(differ: bool) -> tuple[dict[str, float], dict[str, float]]:
    """The least and the most that each measure may be, for images that differ or that do not."""
    least = {"first": LEAST_LIKE, "last": LEAST_LIKE, "light": LEAST_LIGHT}
    most = {"jump": MOST_JUMP, "grain": MOST_GRAIN, "back": MOST_BACK}
    if differ:
        least |= {"depart": LEAST_NEARER, "arrive": LEAST_NEARER}
        most |= {"still": MOST_STILL}
    return least, most


def judge(measures: ClipMeasures) -> list[FailedCheck]:
    """The checks that a clip fails; none for a good one."""
    least, most = limits(measures.alike < ALIKE)
    found = dataclasses.asdict(measures)
    failed = (
        [FailedCheck("frames", measures.frames, CLIP_FRAMES)]
        if measures.frames != CLIP_FRAMES
        else []
    )
    # What is no number fails as well.
    low = [(name, limit) for name, limit in least.items() if not found[name] >= limit]
    high = [(name, limit) for name, limit in most.items() if not found[name] <= limit]
    return [*failed, *(FailedCheck(name, found[name], limit) for name, limit in (*low, *high))]
