"""What each node class does here: loaders hand out names, the rest passes a `Film` along."""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mishaps import strike
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from rendering import EncoderDiedError, Encoding, Film, Picture, Projector, fit, write_film
from run import NodeError, Run
from saving import NumberedFile, number_file, pad, spoil
from state import Outputs
from texts import (
    Conditioning,
    apply_nag,
    condition,
    encode_text,
    fingerprint,
    load_encoder,
    load_gguf_encoder,
)

SPATIAL = 32  # pixels per latent cell
TEMPORAL = 8  # frames per latent frame, after the first
NUMBER = re.compile(r"[-+]?(?:\d*\.*\d+)")
RESAMPLING = {
    "nearest-exact": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "area": Image.Resampling.BOX,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Guider:
    model: str
    positive: Conditioning
    cfg: float


def load_checkpoint(run: Run, ckpt_name: str) -> Outputs:
    return (f"model of {ckpt_name}", f"clip of {ckpt_name}", f"vae of {ckpt_name}")


def load_unet(run: Run, unet_name: str) -> Outputs:
    return (f"model of {unet_name}",)


def load_vae(run: Run, vae_name: str, device: str = "", weight_dtype: str = "") -> Outputs:
    return (f"vae of {vae_name}",)


def load_image(run: Run, image: str) -> Outputs:
    path = run.folders.input_file(image)
    try:
        picture = _decode(path)
    except UnidentifiedImageError:
        raise
    except OSError:
        # As the real node does: a truncated file is read as far as it goes, the rest is black.
        ImageFile.LOAD_TRUNCATED_IMAGES = True
        try:
            picture = _decode(path)
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = False
    return (picture, "mask")


def _decode(path: Path) -> Picture:
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def scale_image(
    run: Run, image: Picture, upscale_method: str, width: int, height: int, crop: str
) -> Outputs:
    width = width or max(1, round(image.width * height / image.height))
    height = height or max(1, round(image.height * width / image.width))
    method = RESAMPLING[upscale_method]
    if crop == "center":
        return (fit(image, width, height, method),)
    return (image.resize((width, height), method),)


def preprocess(run: Run, image: Picture, img_compression: int) -> Outputs:
    if img_compression == 0:
        return (image,)
    return (image.crop((0, 0, image.width // 2 * 2, image.height // 2 * 2)),)


def empty_latent(run: Run, width: int, height: int, length: int, batch_size: int) -> Outputs:
    """Sizes that do not divide are cut, silently."""
    frames = (length - 1) // TEMPORAL * TEMPORAL + 1
    return (Film(width // SPATIAL * SPATIAL, height // SPATIAL * SPATIAL, frames, sampled=False),)


def pin_images(run: Run, vae: str, latent: Film, **settings: Any) -> Outputs:
    """LTXVImgToVideoInplaceKJ: an image without index, or an index without image, is skipped."""
    if "num_images" not in settings:
        problem = "missing 1 required positional argument: 'num_images'"
        raise TypeError(f"LTXVImgToVideoInplaceKJ.execute() {problem}")
    for n in range(1, int(settings["num_images"]) + 1):
        image = settings.get(f"num_images.image_{n}")
        index = settings.get(f"num_images.index_{n}")
        if image is not None and index is not None:
            latent = _pin(latent, image, index)
    return (latent,)


def add_guide(
    run: Run, positive: Conditioning, negative: Conditioning, vae: str, latent: Film,
    image: Picture, frame_idx: int, strength: float, **more: Any,
) -> Outputs:  # fmt: skip
    return (positive, negative, _pin(latent, image, frame_idx))


def crop_guides(run: Run, positive: Conditioning, negative: Conditioning, latent: Film) -> Outputs:
    return (positive, negative, latent)


def _pin(latent: Film, image: Picture, index: int) -> Film:
    """Put `image` on the latent frame that holds frame `index`; negative ones count backwards."""
    last = (latent.length - 1) // TEMPORAL
    cell = (index + last * TEMPORAL + 1 if index < 0 else index) // TEMPORAL
    frame = max(0, min(cell, last)) * TEMPORAL
    others = tuple(entry for entry in latent.keyframes if entry[0] != frame)
    keyframes = tuple(sorted([*others, (frame, image)], key=lambda entry: entry[0]))
    return replace(latent, keyframes=keyframes)


def read_sigmas(run: Run, sigmas: str) -> Outputs:
    """What is no number is dropped, silently; nothing may be left."""
    return ([float(number) for number in NUMBER.findall(sigmas)],)


def select_sampler(run: Run, sampler_name: str) -> Outputs:
    return (sampler_name,)


def guide(
    run: Run, model: str, positive: Conditioning, negative: Conditioning, cfg: float
) -> Outputs:
    return (Guider(model, positive, cfg),)


def make_noise(run: Run, noise_seed: int) -> Outputs:
    return (noise_seed,)


def sample(
    run: Run, noise: int, guider: Guider, sampler: str, sigmas: list[float], latent_image: Film
) -> Outputs:
    steps = max(0, len(sigmas) - 1)
    if steps == 0:
        return (latent_image, latent_image)
    run.load_model()
    strike(run, 0)
    for step in range(1, steps + 1):
        run.wait(run.times.step)
        run.show_step(step, steps, latent_image)
        strike(run, step)
    wanted = f"{noise}:{guider.model}:{fingerprint(guider.positive)}"
    digest = hashlib.sha256(wanted.encode()).digest()
    drift = int.from_bytes(digest[:4], "big") / 2**32 * math.tau
    film = replace(latent_image, sampled=True, drift=drift)
    return (film, film)


def decode(run: Run, samples: Film, vae: str, **tiles: int) -> Outputs:
    run.wait(run.times.decode)
    return (samples,)


def combine_video(
    run: Run, images: Film | Picture, frame_rate: float, filename_prefix: str, format: str,
    save_output: bool, pingpong: bool, loop_count: int, **widgets: Any,
) -> Outputs:  # fmt: skip
    """VHS_VideoCombine, silent, always H.264 in an mp4 unless the format says H.265."""
    started = time.monotonic()
    kind = "output" if save_output else "temp"
    film = _as_film(images)
    target = number_file(run.folders, kind, filename_prefix)
    extra = run.extra_data.get("extra_pnginfo", {}).get("workflow", {}).get("extra", {})
    if extra.get("VHS_MetadataImage", True):
        _save_still(run, film, target.path(".png"))
    path = target.path(".mp4")
    _write(run, film, path, _encoding(run, frame_rate, format, pingpong, widgets))
    pad(path, run.state.script.pad_mb)
    spoil(path, run.fault, run.state.last_video)
    run.state.last_video = path
    run.wait(run.times.encode - (time.monotonic() - started))
    run.show({"gifs": [_describe_video(run, target, kind, format, frame_rate)]})
    return ((save_output, [str(path)]),)


def _as_film(images: Film | Picture) -> Film:
    if isinstance(images, Film):
        return images
    return Film(images.width // 2 * 2, images.height // 2 * 2, 1, ((0, images),))


def _encoding(
    run: Run, frame_rate: float, format: str, pingpong: bool, widgets: dict[str, Any]
) -> Encoding:
    comment = json.dumps(
        {"prompt": json.dumps(run.prompt)} | run.extra_data.get("extra_pnginfo", {})
    )
    h265 = "h265" in format
    return Encoding(
        frame_rate,
        crf=widgets.get("crf", 22 if h265 else 19),
        pix_fmt=widgets.get("pix_fmt", "yuv420p10le" if h265 else "yuv420p"),
        codec="libx265" if h265 else "libx264",
        pingpong=pingpong,
        comment=comment if widgets.get("save_metadata", True) else None,
    )


def _write(run: Run, film: Film, path: Path, encoding: Encoding) -> None:
    try:
        write_film(Projector(film, run.fault), path, encoding, run.show_progress)
    except EncoderDiedError as error:
        # With metadata on, VHS minds a dead ffmpeg only if it left a file.
        if encoding.comment is None or path.exists():
            raise NodeError(f"An error occurred in the ffmpeg subprocess:\n{error}") from None


def _describe_video(
    run: Run, target: NumberedFile, kind: str, format: str, frame_rate: float
) -> dict[str, Any]:
    described = {
        "filename": target.name(".mp4"),
        "subfolder": target.subfolder,
        "type": kind,
        "format": format,
        "frame_rate": frame_rate,
        "workflow": target.name(".png"),
        "fullpath": str(target.path(".mp4")),
    }
    if run.fault.kind == "escape":
        outside = {"filename": "passwd", "subfolder": "../../../../etc", "fullpath": "/etc/passwd"}
        described |= outside | dict(run.fault.details)
    return described


def _save_still(run: Run, film: Film, path: Path) -> None:
    """The first frame, with the whole prompt in it."""
    notes = PngInfo()
    notes.add_text("prompt", json.dumps(run.prompt))
    first = film.keyframes[0][1] if film.keyframes else Image.new("RGB", (64, 64), "grey")
    still = fit(first, film.width, film.height, Image.Resampling.BILINEAR)
    still.save(path, pnginfo=notes, compress_level=1)


def preview_image(run: Run, images: Film | Picture) -> Outputs:
    return _save_picture(run, images, "temp", "ComfyUI_temp")


def save_image(run: Run, images: Film | Picture, filename_prefix: str) -> Outputs:
    return _save_picture(run, images, "output", filename_prefix)


def _save_picture(run: Run, images: Film | Picture, kind: str, prefix: str) -> Outputs:
    target = number_file(run.folders, kind, prefix)
    _save_still(run, _as_film(images), target.path("_.png"))
    saved = {"filename": target.name("_.png"), "subfolder": target.subfolder, "type": kind}
    run.show({"images": [saved]})
    return (images,)


NODES: dict[str, Callable[..., Outputs]] = {
    "CheckpointLoaderSimple": load_checkpoint,
    "UnetLoaderGGUF": load_unet,
    "DualCLIPLoader": load_encoder,
    "DualCLIPLoaderGGUF": load_gguf_encoder,
    "VAELoader": load_vae,
    "VAELoaderKJ": load_vae,
    "CLIPTextEncode": encode_text,
    "LTXVConditioning": condition,
    "LTX2_NAG": apply_nag,
    "LoadImage": load_image,
    "ImageScale": scale_image,
    "LTXVPreprocess": preprocess,
    "EmptyLTXVLatentVideo": empty_latent,
    "LTXVImgToVideoInplaceKJ": pin_images,
    "LTXVAddGuide": add_guide,
    "LTXVCropGuides": crop_guides,
    "ManualSigmas": read_sigmas,
    "KSamplerSelect": select_sampler,
    "CFGGuider": guide,
    "RandomNoise": make_noise,
    "SamplerCustomAdvanced": sample,
    "VAEDecode": decode,
    "VAEDecodeTiled": decode,
    "VHS_VideoCombine": combine_video,
    "PreviewImage": preview_image,
    "SaveImage": save_image,
}
