"""The recipe: one clip as a workflow in ComfyUI's API format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ltx.comfyui.conditioning import HOLD_NODE, LOAD_NODE, REST_NODE, SAVE_NODE
from ltx.job import CLIP_FRAMES, FPS, render_size
from ltx.settings import Settings, Size

Workflow = dict[str, dict[str, Any]]
# The eight steps the distilled model was trained on.
SIGMAS = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0)
STEPS = len(SIGMAS) - 1
# A distilled model is sampled without guidance: CFG 1 leaves the negative prompt to NAG alone.
CFG = 1.0
NAG_SCALE, NAG_TAU, NAG_ALPHA = 3.0, 2.0, 0.2
NEGATIVE_PROMPT = (
    "blurry, low quality, flicker, ghosting, warped walls, bent lines, melting furniture, "
    "sudden cut, camera shake, people, text, logo, watermark"
)
# Far from visible loss, because the trimmed clip is encoded once more from it.
RENDER_CRF = 10
# ComfyUI caches by inputs, not by node id; ids of their own keep the clips apart in logs.
NODE_STRIDE = 1000
SAMPLER_NODE = "SamplerCustomAdvanced"


@dataclass(frozen=True)
class ClipSpec:
    """One clip as the workflow needs it; image names are as ComfyUI's upload returned them."""

    clip: int
    first: str
    last: str
    prompt: str
    seed: int
    prefix: str
    size: Size
    negative: str = NEGATIVE_PROMPT


Link = list[str | int]


class Graph:
    """An API workflow in the making; node ids are strings that count up from `base`."""

    def __init__(self, base: int) -> None:
        self.base, self.nodes = base, Workflow()

    def add(self, kind: str, **inputs: Any) -> Callable[[int], Link]:
        """Adds a node and returns what links to its outputs: add(...)(0) is the first one."""
        node = str(self.base + len(self.nodes) + 1)
        self.nodes[node] = {"class_type": kind, "inputs": inputs}
        return lambda slot: [node, slot]


def build_workflow(
    spec: ClipSpec, settings: Settings, keys: Mapping[str, str] | None = None
) -> Workflow:
    """The API workflow for one clip: both ends pinned, 8 steps, CFG 1, NAG, silent video.

    keys: by text, where our node pack kept its conditioning; without them the text encoder is in
    the workflow.
    """
    graph = Graph(spec.clip * NODE_STRIDE)
    checkpoint = graph.add("CheckpointLoaderSimple", ckpt_name=settings.checkpoint)
    texts = (spec.prompt, spec.negative)
    if keys is None:
        clip = add_text_encoder(graph, settings)
        positive, negative = (graph.add("CLIPTextEncode", text=text, clip=clip) for text in texts)
    else:
        positive, negative = (graph.add(LOAD_NODE, key=keys[text]) for text in texts)
    both = {"positive": positive(0), "negative": negative(0)}
    conditioning = graph.add("LTXVConditioning", **both, frame_rate=float(FPS))
    # NAG takes the encoder's own output, the same tensor as behind LTXVConditioning, because
    # ComfyUI can cache the node then: 2.5 to 3.5 s less for every warm clip.
    nag = {"nag_scale": NAG_SCALE, "nag_tau": NAG_TAU, "nag_alpha": NAG_ALPHA, "inplace": True}
    model = graph.add("LTX2_NAG", model=checkpoint(0), nag_cond_video=negative(0), **nag)
    guided = {"positive": conditioning(0), "negative": conditioning(1)}
    sampling = {
        "guider": graph.add("CFGGuider", model=model(0), **guided, cfg=CFG)(0),
        "sampler": graph.add("KSamplerSelect", sampler_name=settings.sampler)(0),
        "sigmas": graph.add("ManualSigmas", sigmas=", ".join(map(str, SIGMAS)))(0),
        "noise": graph.add("RandomNoise", noise_seed=spec.seed)(0),
        "latent_image": add_pinned_latent(graph, spec, vae=checkpoint(2)),
    }
    samples = graph.add(SAMPLER_NODE, **sampling)
    frames = graph.add("VAEDecode", samples=samples(0), vae=checkpoint(2))
    graph.add("VHS_VideoCombine", images=frames(0), **video_file(spec.prefix))
    return graph.nodes


def build_probe(settings: Settings) -> Workflow:
    """A clip's workflow for looking whether a ComfyUI has what it takes; it is never queued."""
    size = render_size(settings.size)
    return build_workflow(ClipSpec(0, "first.png", "last.png", "", 0, "probe", size), settings)


def build_text_workflow(keys: Mapping[str, str], settings: Settings) -> Workflow:
    """Encodes every text and keeps it under its key, then gives the encoder's VRAM back.

    Without texts it loads the encoder and holds it in RAM, for the texts to come.
    """
    graph = Graph(0)
    clip = add_text_encoder(graph, settings)
    # One saver after the other, so that the encoder rests when the last one is done.
    after: dict[str, Link] = {}
    for text, key in keys.items():
        conditioning = graph.add("CLIPTextEncode", text=text, clip=clip)(0)
        saved = graph.add(SAVE_NODE, conditioning=conditioning, key=key, **after)
        after = {"after": saved(0)}
    graph.add(REST_NODE if keys else HOLD_NODE, clip=clip, **after)
    return graph.nodes


def add_text_encoder(graph: Graph, settings: Settings) -> Link:
    """The loader that reads the file's kind.

    Through the GGUF node a scaled safetensors file gives a conditioning that is 25 % off, without
    a word: it ignores the scales.
    """
    # Gemma has to come first: the tokenizer is read from the first file.
    files = {"clip_name1": settings.text_encoder, "clip_name2": settings.text_projection}
    core = settings.text_encoder.lower().endswith(".safetensors")
    return graph.add("DualCLIPLoader" if core else "DualCLIPLoaderGGUF", **files, type="ltxv")(0)


def add_pinned_latent(graph: Graph, spec: ClipSpec, vae: Link) -> Link:
    """An empty video latent whose first and last frames are the two images."""
    size = spec.size._asdict()
    scaling = {"upscale_method": "lanczos", **size, "crop": "center"}
    ends = [
        graph.add("ImageScale", image=graph.add("LoadImage", image=name)(0), **scaling)(0)
        for name in (spec.first, spec.last)
    ]
    empty = graph.add("EmptyLTXVLatentVideo", **size, length=CLIP_FRAMES, batch_size=1)
    # num_images must be a string: the number 2 passes validation and dies while running. Without
    # image_2 or index_2 the last frame would be dropped without a word.
    pins: dict[str, Any] = {"num_images": "2"}
    for number, (image, index) in enumerate(zip(ends, (0, -1), strict=True), start=1):
        pins[f"num_images.image_{number}"] = image
        pins[f"num_images.index_{number}"] = index
        pins[f"num_images.strength_{number}"] = 1.0
    return graph.add("LTXVImgToVideoInplaceKJ", vae=vae, latent=empty(0), **pins)(0)


def video_file(prefix: str) -> dict[str, Any]:
    """What VHS_VideoCombine writes; save_metadata would put the prompts into the file."""
    return {
        "frame_rate": float(FPS),
        "loop_count": 0,
        "filename_prefix": prefix,
        "format": "video/h264-mp4",
        "pix_fmt": "yuv420p",
        "crf": RENDER_CRF,
        "save_metadata": False,
        "trim_to_audio": False,
        "pingpong": False,
        "save_output": True,
    }
