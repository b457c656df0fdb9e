"""Pictures as phones, cameras and editors write them, each with what it shows; written by code."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tests.film import profiles
from tests.film.picture_files import (
    COLOURFUL,
    OTHER,
    SHOWN,
    SIZE,
    WHITE,
    bad_chunk,
    cmyk,
    decoded,
    exif,
    jpeg,
    managed,
    movie,
    numbered,
    odd_scan,
    on_white,
    pasted,
    png_of,
    segment,
    turned,
    veil,
    webp,
    with_alpha,
    with_chunks,
    with_segments,
    ycck,
)  # fmt: skip
from tests.pictures import image_of, png_chunk, save


class Sample(NamedTuple):
    """A picture file, and the upright sRGB picture it shows."""

    kind: str
    name: str
    content: bytes
    shows: Image.Image


def corpus() -> list[Sample]:
    rows = {
        "orientation": orientations(),
        "behind the end": tails(),
        "small sins": sins(),
        "transparency": transparencies(),
        "pixel formats": modes(),
        "colour profiles": colours(),
        "animations": animations(),
    }
    return [Sample(kind, *row) for kind, found in rows.items() for row in found]


Rows = Iterator[tuple[str, bytes, Image.Image]]

# Which side is up


def orientations() -> Rows:
    for number in range(1, 9):
        image, order = turned(SHOWN, number), "<>"[number % 2]
        block = exif(number, order)
        yield f"JPEG, orientation {number}", jpeg(image, exif=block), SHOWN
        yield f"PNG, orientation {number}", save(image, exif=block), SHOWN
        yield f"WebP, orientation {number}", webp(image, exif=block), SHOWN
    late = save(turned(SHOWN, 6))
    end = late.index(b"IEND") - 4
    late = late[:end] + png_chunk(b"eXIf", exif(6)[6:]) + late[end:]
    yield "PNG, orientation behind the pixels", late, SHOWN
    thumbnail = jpeg(OTHER.resize((64, 40)), exif=exif(3))
    with_thumbnail = jpeg(turned(SHOWN, 8), exif=exif(8) + thumbnail)
    yield "JPEG, a turned thumbnail inside", with_thumbnail, SHOWN
    # The letters of another orientation, where nobody looks for one.
    comment = segment(0xFE, exif(6)) + segment(0xE5, exif(3))
    yield "JPEG, EXIF in a comment", with_segments(jpeg(), comment), SHOWN
    text = png_chunk(b"tEXt", b"note\0eXIf" + exif(6)[6:])
    yield "PNG, EXIF in a text", with_chunks(save(SHOWN), text), SHOWN
    yield "JPEG, broken EXIF", jpeg(exif=exif(6)[:18] + b"\xff" * 9), SHOWN
    yield "WebP, orientation 9", webp(exif=exif(9)), SHOWN


# What tools put behind a picture


def tails() -> Rows:
    second = jpeg(OTHER, exif=exif(6))
    gain = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x hdrgm:Version='1.0'/>")
    mpf = segment(0xE2, b"MPF\0MM\0*\0\0\0\x08\0\0")
    samsung = b"SEFH\x6b\0\0\0\x01\0\0\0\xff\xd9\xff\xdaMotionPhoto_DataSEFT"
    yield "motion photo", jpeg() + movie(), SHOWN
    yield "motion photo, progressive", jpeg(progressive=True) + movie(), SHOWN
    yield "motion photo, turned", jpeg(turned(SHOWN, 6), exif=exif(6)) + movie(), SHOWN
    yield "motion photo of Samsung", jpeg() + movie() + samsung, SHOWN
    yield "MPO", save(SHOWN, "MPO", quality=95, save_all=True, append_images=[OTHER]), SHOWN
    yield "MPO by hand", with_segments(jpeg(), mpf) + bytes(77) + second, SHOWN
    yield "gain map", with_segments(jpeg(), gain, mpf) + jpeg(OTHER.convert("L")), SHOWN
    yield "JPEG, zeros behind", jpeg() + bytes(1000), SHOWN
    yield "JPEG, FF behind", jpeg() + b"\xff" * 1000, SHOWN
    yield "JPEG, a page behind", jpeg() + b"<html>sent by</html>", SHOWN
    yield "JPEG, half a picture behind", jpeg() + second[: len(second) // 2], SHOWN
    yield "PNG, bytes behind", save(SHOWN) + bytes(1000) + second, SHOWN
    yield "PNG, a PNG behind", save(SHOWN) + save(OTHER), SHOWN
    yield "WebP, bytes behind", webp() + bytes(1000), SHOWN
    yield "WebP, a film behind", webp() + movie(), SHOWN


# Small sins


def sins() -> Rows:
    plain, profile = save(SHOWN), zlib.compress(profiles.SRGB_V4)
    yield "JPEG, restarts", jpeg(restart_marker_rows=1), SHOWN
    yield "JPEG, odd SOS: 0 to 0", odd_scan(jpeg(), first=0, last=0, bits=0), SHOWN
    yield "JPEG, odd SOS: 0 to 63, 0x10", odd_scan(jpeg(), first=0, last=63, bits=0x10), SHOWN
    yield "JPEG, odd SOS: 63 to 0", odd_scan(jpeg(), first=63, last=0, bits=0), SHOWN
    app = segment(0xE9, b"x" * 50)
    yield "JPEG, FF before markers", with_segments(jpeg(), b"\xff" * 9 + app, b"\xff" * 4), SHOWN
    yield "JPEG, stray bytes before markers", with_segments(jpeg(), b"\0" + app, b"\0\1"), SHOWN
    yield "JPEG, FF before EOI", jpeg()[:-2] + b"\xff\xff\xff\xd9", SHOWN
    raw = png_chunk(b"iCCP", b"raw\0\0" + profiles.SRGB_V4)
    yield "PNG, raw iCCP", with_chunks(plain, raw), SHOWN
    yield "PNG, broken iCCP", with_chunks(plain, png_chunk(b"iCCP", b"x\0\0" + b"no zlib")), SHOWN
    cut = png_chunk(b"iCCP", b"x\0\0" + profile[: len(profile) // 2])
    yield "PNG, iCCP cut short", with_chunks(plain, cut), SHOWN
    yield "PNG, iCCP without an end", with_chunks(plain, png_chunk(b"iCCP", b"x" * 200)), SHOWN
    bomb = png_chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(20_000_000), 9))
    yield "PNG, iCCP of 20 MB unpacked", with_chunks(plain, bomb), SHOWN
    for kind in (b"tEXt", b"pHYs", b"gAMA", b"eXIf", b"iCCP"):
        content = {b"eXIf": exif(6)[6:], b"iCCP": b"x\0\0" + zlib.compress(profiles.ADOBE_V2)}
        chunk = bad_chunk(kind, content.get(kind, b"\0\1\2\3\4\5\6\7\1"))
        yield f"PNG, bad CRC of {kind.decode()}", with_chunks(plain, chunk), SHOWN
    unknown = png_chunk(b"vpAg", b"\0" * 9)
    yield "PNG, an unknown chunk", with_chunks(plain, unknown), SHOWN
    yield "PNG, a wrong tRNS checksum", with_chunks(plain, bad_chunk(b"tRNS", bytes(6))), SHOWN


# Transparency


def transparencies() -> Rows:
    half = with_alpha(SHOWN, veil())
    hidden = with_alpha(SHOWN, np.where(veil() > 128, 255, 0).astype(np.uint8))
    grey = half.convert("LA")
    palette = SHOWN.quantize(64)
    holes = palette.convert("RGBA")
    holes.putalpha(Image.fromarray(np.where(np.asarray(palette) < 20, 0, 255).astype(np.uint8)))
    keyed = SHOWN.copy()
    keyed.paste((255, 0, 255), (100, 50, 200, 150))
    shown_key = SHOWN.copy()
    shown_key.paste(WHITE, (100, 50, 200, 150))
    yield "PNG, RGBA", save(half), on_white(half)
    yield "PNG, hidden colours", save(hidden), on_white(hidden)
    yield "PNG, RGBA of 16 bits", png_of(half, 16, 6), on_white(half)
    yield "PNG, grey with alpha", save(grey), on_white(grey)
    yield "PNG, grey with alpha of 16 bits", png_of(grey, 16, 4), on_white(grey)
    yield "PNG, palette with tRNS", save(palette, transparency=bytes([0] * 20)), on_white(holes)
    yield "PNG, a colour that is transparent", save(keyed, transparency=(255, 0, 255)), shown_key
    yield "PNG, alpha and orientation", save(turned(half, 6), exif=exif(6)), on_white(half)
    yield (
        "PNG, all of it transparent",
        save(with_alpha(SHOWN, veil() * 0)),
        Image.new("RGB", SIZE, WHITE),
    )
    yield "WebP, lossless alpha", webp(half), on_white(half)
    yield "WebP, hidden colours", webp(hidden), on_white(hidden)
    lossy = webp(half, lossless=False, quality=95)
    yield "WebP, lossy with alpha", lossy, on_white(half)


# Pixel formats


def modes() -> Rows:
    grey, palette = SHOWN.convert("L"), SHOWN.quantize(64)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    yield "PNG", save(SHOWN), SHOWN
    yield "PNG, 16 bits", png_of(SHOWN, 16, 2), SHOWN
    yield "PNG, grey", save(grey), grey
    yield "PNG, grey of 16 bits", save(deep), grey
    black = grey.point(lambda value: 255 * (value > 128)).convert("1")
    yield "PNG, 1 bit", save(black), black
    yield "PNG, palette", save(palette), palette
    yield "PNG, palette of 4 bits", save(SHOWN.quantize(16), bits=4), SHOWN.quantize(16)
    yield "JPEG, 4:4:4", jpeg(), SHOWN
    yield "JPEG, 4:2:2", jpeg(subsampling=1), SHOWN
    yield "JPEG, 4:2:0", jpeg(subsampling=2), SHOWN
    yield "JPEG, progressive", jpeg(progressive=True), SHOWN
    yield "JPEG, grey", jpeg(grey), grey
    yield "JPEG, RGB", jpeg(keep_rgb=True), SHOWN
    yield "JPEG, CMYK with Adobe's marker", cmyk(SHOWN, transform=0), SHOWN
    yield "JPEG, CMYK without a marker", cmyk(SHOWN, transform=None), SHOWN
    bare = numbered(cmyk(SHOWN, transform=None))
    yield "JPEG, CMYK without marker and names", bare, SHOWN
    yield "JPEG, YCCK", ycck(SHOWN), SHOWN
    yield "WebP, lossy", webp(lossless=False, quality=95), SHOWN
    yield "WebP, lossless", webp(), SHOWN
    small = jpeg(COLOURFUL, subsampling=2), webp(COLOURFUL, lossless=False, quality=95)
    yield "JPEG, 4:2:0, small colours", small[0], decoded(small[0])
    yield "WebP, lossy, small colours", small[1], decoded(small[1])
    veiled = webp(with_alpha(COLOURFUL, veil()), lossless=False, quality=95)
    yield "WebP, lossy, small colours, alpha", veiled, on_white(Image.open(io.BytesIO(veiled)))
    managed_one = managed(decoded(small[0]), profiles.P3_V4)
    small_p3 = jpeg(COLOURFUL, subsampling=2, icc_profile=profiles.P3_V4)
    yield "JPEG, 4:2:0, small colours, Display P3", small_p3, managed_one
    dot, line = Image.new("RGB", (1, 1), (200, 90, 30)), image_of("line", (4000, 8))
    yield "1 x 1", save(dot), dot
    yield "4000 x 8", save(line), line


# Colour profiles


def colours() -> Rows:
    spaces = {
        "Display P3": profiles.P3_V4,
        "Adobe RGB": profiles.ADOBE_V2,
        "wide, by table": profiles.WIDE_V2,
        "sRGB": profiles.SRGB_V4,
    }
    for name, profile in spaces.items():
        shows = managed(SHOWN, profile)
        yield f"JPEG, {name}", jpeg(icc_profile=profile), shows
        yield f"PNG, {name}", save(SHOWN, icc_profile=profile), shows
        yield f"WebP, {name}", webp(icc_profile=profile), shows
    grey, gamma = SHOWN.convert("L"), profiles.grey_profile(profiles.gamma(1.8))
    yield "PNG, grey of gamma 1.8", save(grey, icc_profile=gamma), managed(grey, gamma)
    yield "JPEG, grey of gamma 1.8", jpeg(grey, icc_profile=gamma), managed(grey, gamma)
    for number, curve in enumerate(profiles.CURVES):
        profile = profiles.rgb_profile(profiles.DISPLAY_P3, curve)
        yield f"PNG, curve {number}", save(SHOWN, icc_profile=profile), managed(SHOWN, profile)
    padded = profiles.padded(profiles.P3_V4, 150_000)
    yield "JPEG, a profile in three parts", jpeg(icc_profile=padded), managed(SHOWN, profiles.P3_V4)
    p3, half = profiles.P3_V4, with_alpha(SHOWN, veil())
    seen = on_white(with_alpha(managed(SHOWN, p3), veil()))
    yield "PNG, Display P3 and alpha", save(half, icc_profile=p3), seen
    both = jpeg(turned(SHOWN, 8), icc_profile=p3, exif=exif(8))
    yield "JPEG, Display P3 and orientation", both, managed(SHOWN, p3)
    yield "JPEG, Display P3, motion photo", jpeg(icc_profile=p3) + movie(), managed(SHOWN, p3)
    yield "JPEG, no profile in a profile", jpeg(icc_profile=b"no profile"), SHOWN
    yield "JPEG, a profile's first half", jpeg(icc_profile=p3[: len(p3) // 2]), SHOWN


# Animations


def animations() -> Rows:
    two: dict[str, Any] = {"save_all": True, "append_images": [OTHER, SHOWN]}
    part = Image.new("RGB", SIZE, WHITE)
    part.paste(SHOWN.crop((40, 20, 240, 160)), (40, 20))
    half = with_alpha(SHOWN, veil())
    later: dict[str, Any] = {"save_all": True, "append_images": [with_alpha(OTHER, veil())]}
    yield "WebP", webp(**two), SHOWN
    yield "WebP, lossy", webp(**two, lossless=False, quality=95), SHOWN
    yield "WebP, first frame smaller", pasted("WEBP", lossless=True), part
    yield "WebP, alpha", webp(half, **later), on_white(half)
    yield "WebP, lossy, alpha", webp(half, **later, lossless=False, quality=95), on_white(half)
    yield (
        "WebP, turned",
        webp(turned(SHOWN, 6), save_all=True, append_images=[turned(OTHER, 6)], exif=exif(6)),
        SHOWN,
    )
    yield "PNG", save(SHOWN, **two), SHOWN
    yield "PNG, alpha", save(half, **later), on_white(half)
