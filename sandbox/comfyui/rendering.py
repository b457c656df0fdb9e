"""The look-alike's imagination: a film that dissolves from keyframe to keyframe, and its file.

Frames are made as yuv420p planes, so that nothing has to be converted per frame, and piped into
ffmpeg. Motion and dissolve are exactly zero at a keyframe: the picture there is the picture given.
"""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from PIL import Image
from script import Fault

Planes = tuple[Image.Image, Image.Image, Image.Image]  # Y, Cb, Cr; the last two at half size
Picture = Image.Image  # RGB

ZOOM = 0.06  # how much closer the camera is halfway between two keyframes
BLACK = (16, 128, 128)  # Y, Cb, Cr
GREY = (128, 128, 128)
NOISE_SEED = 20
LIMITED = [16 + level * 219 // 255 for level in range(256)]
# What red, green and blue add to each of Y, Cb and Cr, and its offset (ITU-R BT.709-6, item 3).
_LUMA = (0.2126, 0.7152, 0.0722)
BT709 = (
    *(219 / 255 * share for share in _LUMA), 16,
    *(224 / 255 * (one - share) / 1.8556 for one, share in zip((0, 0, 1), _LUMA, strict=True)), 128,
    *(224 / 255 * (one - share) / 1.5748 for one, share in zip((1, 0, 0), _LUMA, strict=True)), 128,
)  # fmt: skip
COLOURS = "-color_range tv -colorspace bt709 -color_primaries bt709 -color_trc bt709"


@dataclass(frozen=True, eq=False)
class Film:
    """What the sampler made of a graph, before a pixel of it is drawn."""

    width: int  # pixels
    height: int
    length: int  # frames
    keyframes: tuple[tuple[int, Picture], ...] = ()  # (frame, picture), ascending
    drift: float = 0.0  # radians; which way the camera goes between keyframes
    sampled: bool = True  # an empty list of sigmas leaves everything but the keyframes grey


@dataclass(frozen=True)
class Moment:
    """One frame in the making: `share` of `after` over `before`, seen by the camera at `view`."""

    before: Planes
    after: Planes
    share: float  # 0..1
    view: float  # 0..1 along the way from one keyframe to the next; both ends are the full picture


def fit(picture: Picture, width: int, height: int, method: Image.Resampling) -> Picture:
    """Scale to fill width x height and cut what sticks out, evenly on both sides."""
    aspect, wanted = picture.width / picture.height, width / height
    x = round(picture.width * (1 - wanted / aspect) / 2) if aspect > wanted else 0
    y = round(picture.height * (1 - aspect / wanted) / 2) if aspect < wanted else 0
    cut = picture.crop((x, y, picture.width - x, picture.height - y))
    return cut.resize((width, height), method)


def to_yuv420(picture: Picture) -> Planes:
    """BT.709, limited range, chroma averaged over 2 x 2 pixels."""
    y, cb, cr = picture.convert("RGB", BT709).split()
    return y, cb.reduce(2), cr.reduce(2)


class Projector:
    """Draws a film's frames, one by one, with the flaw the test asked for."""

    def __init__(self, film: Film, flaw: Fault | None = None) -> None:
        self.flaw = flaw or Fault("none")
        self.amount = float(self.flaw.get("amount", 1.0))
        self.film = self._misjudge(film)
        self.keyframes = [
            (min(frame, self.film.length - 1), to_yuv420(self._sized(picture)))
            for frame, picture in self.film.keyframes
        ]

    def _misjudge(self, film: Film) -> Film:
        """The flaws of a film that was never meant to be the one asked for."""
        if self.flaw.kind == "short_clip":
            return replace(film, length=int(self.flaw.get("frames", 97)))
        if self.flaw.kind == "wrong_size":
            width = int(self.flaw.get("width", film.width // 4 * 2))
            height = int(self.flaw.get("height", film.height // 4 * 2))
            return replace(film, width=width, height=height)
        if self.flaw.kind == "ignore_last" and len(film.keyframes) > 1:
            return replace(film, keyframes=self._without_last(film))
        return film

    def _without_last(self, film: Film) -> tuple[tuple[int, Picture], ...]:
        *others, (frame, last) = film.keyframes
        if self.amount >= 1:
            return tuple(others)
        first = fit(others[0][1], last.width, last.height, Image.Resampling.BILINEAR)
        return (*others, (frame, Image.blend(last, first, self.amount)))

    def _sized(self, picture: Picture) -> Picture:
        if picture.size == (self.film.width, self.film.height):
            return picture
        return fit(picture, self.film.width, self.film.height, Image.Resampling.BILINEAR)

    def frame(self, number: int) -> bytes:
        """The frame as yuv420p, plane after plane."""
        moment = self._moment(self._playhead(number))
        planes = self._flat(GREY) if moment is None else self._shoot(moment)
        return b"".join(plane.tobytes() for plane in self._spoil(planes, number))

    def _playhead(self, number: int) -> float:
        """The frame that is shown as `number`: the same one, unless the film goes astray."""
        end = max(1, self.film.length - 1)
        way = number / end
        kind, amount = self.flaw.kind, self.amount
        if kind == "frozen" and way <= amount:
            return 0
        if kind == "bounce":
            there_and_back = 0.5 - abs(way - 0.5)
            return end * ((1 - amount) * way + amount * there_and_back)
        if kind == "cut":
            return end * (0.3 * way if way < 0.5 else 0.7 + 0.3 * way)
        return number

    def _moment(self, number: float) -> Moment | None:
        """Where `number` stands between its keyframes; None where nothing was sampled."""
        before = [entry for entry in self.keyframes if entry[0] <= number] or self.keyframes[:1]
        after = [entry for entry in self.keyframes if entry[0] > number]
        if not before or (number != before[-1][0] and not self.film.sampled):
            return None
        start, picture = before[-1]
        if not after or start > number:
            # No keyframe ahead: the camera leaves the picture and never comes back.
            rest = max(1, self.film.length - 1 - start)
            return Moment(picture, picture, 0.0, abs(number - start) / rest / 2)
        end, target = after[0]
        way = (number - start) / (end - start)
        return Moment(picture, target, _ease(way), way)

    def _shoot(self, moment: Moment) -> Planes:
        y, cb, cr = (
            self._look(Image.blend(a, b, moment.share), moment.view)
            for a, b in zip(moment.before, moment.after, strict=True)
        )
        return y, cb, cr

    def _look(self, plane: Image.Image, view: float) -> Image.Image:
        """Zoom in and drift, most of all halfway; not at all at 0 and at 1."""
        closeness = ZOOM * 4 * view * (1 - view)
        if closeness == 0:
            return plane
        width, height = plane.size
        margin_x, margin_y = width * closeness / 2, height * closeness / 2
        angle = self.film.drift + math.pi * view
        x = margin_x * (1 + 0.9 * math.cos(angle))
        y = margin_y * (1 + 0.9 * math.sin(angle))
        box = (x, y, x + width - 2 * margin_x, y + height - 2 * margin_y)
        return plane.resize(plane.size, Image.Resampling.BILINEAR, box=box)

    def _spoil(self, planes: Planes, number: int) -> Planes:
        """The flaws of a decoder gone wrong: pixels that no picture explains."""
        middle = self.film.length // 2
        flashing = middle <= number < middle + int(self.flaw.get("frames", 3))
        if self.flaw.kind == "black":
            return self._overlay(planes, self._flat(BLACK))
        if self.flaw.kind == "noise" or (self.flaw.kind == "flash" and flashing):
            return self._overlay(planes, self._noise(number))
        return planes

    def _overlay(self, planes: Planes, over: Planes) -> Planes:
        y, cb, cr = (Image.blend(a, b, self.amount) for a, b in zip(planes, over, strict=True))
        return y, cb, cr

    def _flat(self, colour: tuple[int, int, int]) -> Planes:
        full, half = self._sizes()
        y, cb, cr = colour
        return Image.new("L", full, y), Image.new("L", half, cb), Image.new("L", half, cr)

    def _noise(self, number: int) -> Planes:
        random, (full, half) = Random(NOISE_SEED + number), self._sizes()
        y, cb, cr = (
            Image.frombytes("L", size, random.randbytes(math.prod(size))).point(LIMITED)
            for size in (full, half, half)
        )
        return y, cb, cr

    def _sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        width, height = self.film.width, self.film.height
        return (width, height), (width // 2, height // 2)


def _ease(way: float) -> float:
    """Slow at both ends, but never still, so that no two neighbours are alike."""
    return 0.35 * way + 0.65 * way * way * (3 - 2 * way)


@dataclass(frozen=True)
class Encoding:
    frame_rate: float  # frames per second
    crf: int = 19
    pix_fmt: str = "yuv420p"
    codec: str = "libx264"
    pingpong: bool = False
    comment: str | None = None  # embedded as the mp4's comment tag


class EncoderDiedError(Exception):
    """ffmpeg went away while it was still being fed; the text is its last words."""


def write_film(
    projector: Projector, path: Path, encoding: Encoding, on_frame: Callable[[int, int], None]
) -> None:
    """Encode to `path`, calling on_frame(done, total) after each; its exceptions end the work.

    As in VHS_VideoCombine, nobody looks at ffmpeg's exit status.
    """
    film = projector.film
    order = _frame_order(film.length, encoding.pingpong)
    command = _ffmpeg_command(film, path, encoding)
    ffmpeg = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert ffmpeg.stdin is not None
    try:
        for done, frame in enumerate(_drawn_ahead(projector, order), start=1):
            ffmpeg.stdin.write(frame)
            on_frame(done, len(order))
        ffmpeg.communicate()
    except BrokenPipeError:
        raise EncoderDiedError(ffmpeg.communicate()[1].decode(errors="replace")) from None
    except BaseException:
        ffmpeg.kill()
        ffmpeg.wait()
        raise


def _drawn_ahead(projector: Projector, order: list[int]) -> Iterator[bytes]:
    """Draw the next frame while ffmpeg swallows this one."""
    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(projector.frame, order[0])
        for number in order[1:]:
            frame = upcoming.result()
            upcoming = pool.submit(projector.frame, number)
            yield frame
        yield upcoming.result()


def _frame_order(length: int, pingpong: bool) -> list[int]:
    forth = list(range(length))
    return forth + forth[-2:0:-1] if pingpong else forth


def _ffmpeg_command(film: Film, path: Path, encoding: Encoding) -> list[str]:
    size, rate = f"{film.width}x{film.height}", str(encoding.frame_rate)
    # Said of the output alone, a current ffmpeg takes the input for something else and converts.
    source = f"-f rawvideo -pix_fmt yuv420p -s {size} -r {rate} {COLOURS} -i -".split()
    codec = f"-an -c:v {encoding.codec} -preset ultrafast -threads 2 -crf {encoding.crf}".split()
    comment = [] if encoding.comment is None else ["-metadata", f"comment={encoding.comment}"]
    return [
        *("ffmpeg", "-v", "error", "-y"),
        *source,
        *codec,
        *("-pix_fmt", encoding.pix_fmt),
        *COLOURS.split(),
        *comment,
        str(path),
    ]
