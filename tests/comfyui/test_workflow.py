"""The workflow is a pure function, and what it builds is what both ComfyUI versions accept."""

from __future__ import annotations

import copy
import functools
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltx.comfyui.workflow import NEGATIVE_PROMPT, ClipSpec, build_workflow
from ltx.job import render_size, seed_for
from ltx.settings import SAMPLERS, Settings, Size
from sandbox.client import ROOT
from sandbox.launch import WORKER

sys.path.insert(0, str(ROOT / "sandbox" / "comfyui"))

from schemas import NODES_FILE, VERSIONS, load_schemas
from validation import ValidationResult, validate

Json = dict[str, Any]
Graph = dict[str, Json]
Inputs = Json

FACTS = ROOT.parent / "shared" / "facts" / "comfyui-nodes.json"
REFERENCE = ROOT / "workflows" / "ltx23_flf2v_api.json"
# The measured schemas lie beside the repository where it is developed and checked, not elsewhere.
PLACES = ("look-alike", "measured") if FACTS.exists() else ("look-alike",)
SOURCES = [f"{where} {version}" for where in PLACES for version in VERSIONS]
CLIPS = range(5)
SIZES = {"landscape": Size(1920, 1088), "portrait": Size(1088, 1920)}
SIGMAS = [1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0]
MODEL_LISTS = {
    "ckpt_name": "checkpoints",
    "unet_name": "unet_gguf",
    "clip_name1": "text_encoders",
    "clip_name2": "text_encoders",
    "vae_name": "vae",
}
REFERENCE_SPEC = ClipSpec(
    clip=0,
    first="first.png",
    last="last.png",
    prompt="The camera glides forward at walking pace, level and steady, into the next room.",
    seed=1,
    prefix="ltx-worker/flf2v",
    size=SIZES["landscape"],
)


def settings(**changes: str) -> Settings:
    return Settings.load(changes, needed=())


def spec(clip: int = 0, size: Size = SIZES["landscape"], **changes: Any) -> ClipSpec:
    names = ("a-first.png", "a-last.png", "walk on", 2**53 - 1, "ltx-worker/job-0")
    return ClipSpec(clip, *names, size, **changes)


def built(clip: int = 0, size: Size = SIZES["landscape"], **changes: str) -> Graph:
    return build_workflow(spec(clip, size), settings(**changes))


def node_id(graph: Graph, kind: str) -> str:
    """The id of the only node of a class."""
    (found,) = [name for name, node in graph.items() if node["class_type"] == kind]
    return found


def inputs_of(graph: Graph, kind: str) -> Inputs:
    inputs: Inputs = graph[node_id(graph, kind)]["inputs"]
    return inputs


def source(graph: Graph, link: list[Any]) -> tuple[str, Inputs, int]:
    """The class, the inputs and the output slot that a link names."""
    name, slot = link
    return graph[name]["class_type"], graph[name]["inputs"], slot


# The schemas: the look-alike's, and those measured on the real servers


@functools.cache
def schemas_of(where: str) -> Json:
    place, version = where.split()
    return load_schemas(version) if place == "look-alike" else measured_schemas(version)


def measured_schemas(version: str) -> Json:
    nodes = json.loads(FACTS.read_text())[version]
    return {name: read_measured(node) for name, node in nodes.items()}


def read_measured(node: Json) -> Json:
    """One class of the facts file in the shape of `/object_info`."""
    outputs = [output["type"] for output in node["outputs"]]
    groups = read_groups(node["inputs"])
    return {"input": groups, "output": outputs, "output_node": node["output_node"]}


def read_groups(groups: Json) -> Json:
    return {
        group: {name: read_input(name, spec) for name, spec in inputs.items()}
        for group, inputs in groups.items()
    }


def read_input(name: str, spec: Json) -> list[Any]:
    spec = dict(spec)
    kind = spec.pop("type")
    if kind == "COMFY_DYNAMICCOMBO_V3":
        options = spec["options"].items()
        return [kind, {"options": [{"key": k, "inputs": read_groups(v)} for k, v in options]}]
    if kind == "COMBO":
        # The measured machine had no model files; the names are the ones the worker asks for.
        return [spec.pop("options") + model_files().get(MODEL_LISTS.get(name, ""), []), spec]
    return [kind, spec]


@functools.cache
def model_files() -> dict[str, list[str]]:
    models: dict[str, list[str]] = json.loads(NODES_FILE.read_text())["models"]
    return models


def judge(graph: Graph, where: str = "look-alike 0.27") -> ValidationResult:
    return validate(graph, schemas_of(where), strict=True)


# What is built is accepted


@pytest.mark.parametrize("where", SOURCES)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("clip", CLIPS)
def test_every_workflow_passes_the_strict_validation_of_both_versions(
    clip: int, size: Size, sampler: str, where: str
) -> None:
    graph = built(clip, size, LTX_SAMPLER=sampler)
    verdict = judge(graph, where)
    assert verdict.ok, (verdict.error, verdict.node_errors, verdict.mistakes)
    assert verdict.outputs == [node_id(graph, "VHS_VideoCombine")]
    assert verdict.prompt == graph, "the server had to convert something"


@pytest.mark.parametrize("where", SOURCES)
def test_the_reference_workflow_passes_the_same_validation(where: str) -> None:
    graph = json.loads(REFERENCE.read_text())
    verdict = judge(graph, where)
    assert verdict.ok, (verdict.error, verdict.node_errors, verdict.mistakes)
    assert verdict.prompt == graph


# The function is pure


def test_the_same_shot_always_builds_the_same_workflow() -> None:
    before = built(3)
    spoilt = built(3)
    for node in spoilt.values():
        node["inputs"].clear()
    assert built(3) == before
    assert json.loads(json.dumps(before)) == before, "it is not plain JSON"


def test_the_workflow_command_prints_what_the_worker_would_send() -> None:
    arguments = ["workflow", "a-first.png", "a-last.png", "--prompt", "walk on", "--clip", "2"]
    arguments += ["--negative", "fog", "--seed", "17"]
    printed = subprocess.run(
        [sys.executable, str(WORKER), *arguments],
        env={"VIDEO_SIZE": "1080x1920"},
        capture_output=True,
        check=True,
    ).stdout
    names = ("a-first.png", "a-last.png", "walk on", 17)
    prefix = inputs_of(json.loads(printed), "VHS_VideoCombine")["filename_prefix"]
    wanted = ClipSpec(2, *names, prefix, SIZES["portrait"], negative="fog")
    assert json.loads(printed) == build_workflow(wanted, settings())


# Node ids and links


@pytest.mark.parametrize("clip", CLIPS)
def test_a_clips_node_ids_are_strings_within_its_own_thousand(clip: int) -> None:
    graph = built(clip)
    assert all(isinstance(name, str) for name in graph)
    assert all(clip * 1000 <= int(name) <= clip * 1000 + 999 for name in graph)
    offsets = [int(name) - clip * 1000 for name in graph]
    assert offsets == [int(name) for name in built(0)], "clips differ by more than the offset"


@pytest.mark.parametrize("clip", CLIPS)
def test_every_link_names_a_node_of_the_same_workflow_by_a_string(clip: int) -> None:
    graph = built(clip)
    links = [
        value
        for node in graph.values()
        for value in node["inputs"].values()
        if isinstance(value, list)
    ]
    assert len(links) > 20
    assert all(isinstance(name, str) and name in graph for name, _ in links)
    assert all(type(slot) is int for _, slot in links)


def test_every_node_serves_the_video() -> None:
    graph = built()
    seen, ahead = set[str](), [node_id(graph, "VHS_VideoCombine")]
    while ahead:
        name = ahead.pop()
        seen.add(name)
        ahead += [value[0] for value in graph[name]["inputs"].values() if isinstance(value, list)]
    assert seen == set(graph)


# The recipe


def test_the_model_the_encoder_and_the_projection_are_the_ones_in_the_settings() -> None:
    graph = built(LTX_CHECKPOINT="c.safetensors", LTX_TEXT_ENCODER="e.gguf")
    names = {"clip_name1": "e.gguf", "clip_name2": "ltx-2.3_text_projection_bf16.safetensors"}
    assert inputs_of(graph, "CheckpointLoaderSimple") == {"ckpt_name": "c.safetensors"}
    assert inputs_of(graph, "DualCLIPLoaderGGUF") == {**names, "type": "ltxv"}
    graph = built(LTX_TEXT_PROJECTION="p.safetensors")
    assert inputs_of(graph, "CheckpointLoaderSimple") == {
        "ckpt_name": "ltx-2.3-22b-distilled-fp8.safetensors"
    }
    names = {"clip_name1": "gemma-3-12b-it-qat-Q4_K_M.gguf", "clip_name2": "p.safetensors"}
    assert inputs_of(graph, "DualCLIPLoaderGGUF") == {**names, "type": "ltxv"}


def test_nag_works_on_the_checkpoint_with_the_negative_encoding_itself() -> None:
    graph = built()
    nag = inputs_of(graph, "LTX2_NAG")
    values = {name: nag[name] for name in ("nag_scale", "nag_tau", "nag_alpha")}
    assert values == {"nag_scale": 3.0, "nag_tau": 2.0, "nag_alpha": 0.2}
    assert nag["inplace"] is True
    kind, encoded, slot = source(graph, nag["nag_cond_video"])
    assert (kind, encoded["text"], slot) == ("CLIPTextEncode", NEGATIVE_PROMPT, 0)
    assert nag["model"] == [node_id(graph, "CheckpointLoaderSimple"), 0]
    assert "nag_cond_audio" not in nag


def test_the_negative_prompt_can_be_another_one() -> None:
    graph = build_workflow(spec(negative="fog"), settings())
    _, encoded, _ = source(graph, inputs_of(graph, "LTX2_NAG")["nag_cond_video"])
    assert encoded["text"] == "fog"


def test_the_guider_has_cfg_1_and_both_conditionings_at_24_frames_a_second() -> None:
    graph = built()
    guider, conditioning = inputs_of(graph, "CFGGuider"), node_id(graph, "LTXVConditioning")
    assert guider == {
        "model": [node_id(graph, "LTX2_NAG"), 0],
        "positive": [conditioning, 0],
        "negative": [conditioning, 1],
        "cfg": 1.0,
    }
    inputs = graph[conditioning]["inputs"]
    assert inputs["frame_rate"] == 24.0
    for end, text in (("positive", "walk on"), ("negative", NEGATIVE_PROMPT)):
        kind, encoded, slot = source(graph, inputs[end])
        assert (kind, encoded["text"], slot) == ("CLIPTextEncode", text, 0)
        assert encoded["clip"] == [node_id(graph, "DualCLIPLoaderGGUF"), 0]


def test_both_ends_are_pinned_to_their_pictures() -> None:
    graph = built()
    pins = inputs_of(graph, "LTXVImgToVideoInplaceKJ")
    constants = {name: value for name, value in pins.items() if not isinstance(value, list)}
    assert constants == {
        "num_images": "2",
        "num_images.index_1": 0,
        "num_images.strength_1": 1.0,
        "num_images.index_2": -1,
        "num_images.strength_2": 1.0,
    }
    for number, name in ((1, "a-first.png"), (2, "a-last.png")):
        kind, scaled, _ = source(graph, pins[f"num_images.image_{number}"])
        loader, loaded, slot = source(graph, scaled["image"])
        assert (kind, loader, loaded, slot) == ("ImageScale", "LoadImage", {"image": name}, 0)
    assert pins["vae"] == [node_id(graph, "CheckpointLoaderSimple"), 2]
    assert pins["latent"] == [node_id(graph, "EmptyLTXVLatentVideo"), 0]


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_pictures_and_latent_have_the_rendered_size_and_121_frames(size: Size) -> None:
    graph = built(size=size)
    shape = {"width": size.width, "height": size.height}
    latent = inputs_of(graph, "EmptyLTXVLatentVideo")
    assert latent == {**shape, "length": 121, "batch_size": 1}
    scales = [node["inputs"] for node in graph.values() if node["class_type"] == "ImageScale"]
    assert len(scales) == 2
    for scale in scales:
        del scale["image"]
        assert scale == {**shape, "upscale_method": "lanczos", "crop": "center"}


@pytest.mark.parametrize("sampler", [None, *SAMPLERS])
def test_it_samples_eight_steps_with_the_chosen_sampler(sampler: str | None) -> None:
    graph = build_workflow(spec(), settings(**({"LTX_SAMPLER": sampler} if sampler else {})))
    chosen = inputs_of(graph, "KSamplerSelect")["sampler_name"]
    assert chosen == (sampler or "euler_ancestral_cfg_pp")
    sigmas = inputs_of(graph, "ManualSigmas")["sigmas"]
    assert [float(sigma) for sigma in sigmas.split(",")] == SIGMAS
    assert inputs_of(graph, "RandomNoise") == {"noise_seed": 2**53 - 1}
    assert inputs_of(graph, "SamplerCustomAdvanced") == {
        "noise": [node_id(graph, "RandomNoise"), 0],
        "guider": [node_id(graph, "CFGGuider"), 0],
        "sampler": [node_id(graph, "KSamplerSelect"), 0],
        "sigmas": [node_id(graph, "ManualSigmas"), 0],
        "latent_image": [node_id(graph, "LTXVImgToVideoInplaceKJ"), 0],
    }


def test_the_video_is_silent_keeps_no_prompts_and_is_decoded_by_the_models_own_vae() -> None:
    graph = built()
    video = inputs_of(graph, "VHS_VideoCombine")
    assert video == {
        "images": [node_id(graph, "VAEDecode"), 0],
        "frame_rate": 24.0,
        "loop_count": 0,
        "filename_prefix": "ltx-worker/job-0",
        "format": "video/h264-mp4",
        "pix_fmt": "yuv420p",
        "crf": video["crf"],
        "save_metadata": False,
        "trim_to_audio": False,
        "pingpong": False,
        "save_output": True,
    }
    assert 0 < video["crf"] <= 14, "it is encoded once more, so nothing may be lost here"
    assert inputs_of(graph, "VAEDecode") == {
        "samples": [node_id(graph, "SamplerCustomAdvanced"), 0],
        "vae": [node_id(graph, "CheckpointLoaderSimple"), 2],
    }


# Sizes and seeds


@given(st.builds(Size, st.integers(64, 4096), st.integers(64, 4096)))
def test_the_rendered_size_is_the_next_multiple_of_32(size: Size) -> None:
    for side, rendered in zip(size, render_size(size), strict=True):
        assert rendered % 32 == 0
        assert side <= rendered < side + 32


def test_full_hd_is_rendered_at_1088_lines() -> None:
    assert render_size(Size(1920, 1080)) == SIZES["landscape"]
    assert render_size(Size(1080, 1920)) == SIZES["portrait"]


@given(st.text(), st.integers(0, 4), st.integers(1, 2))
def test_a_seed_survives_being_a_javascript_number(job: str, clip: int, attempt: int) -> None:
    seed = seed_for(job, clip, attempt)
    assert 0 <= seed < 2**53
    assert float(seed) == seed


@given(st.text())
def test_every_clip_and_every_attempt_has_a_seed_of_its_own(job: str) -> None:
    seeds = [seed_for(job, clip, attempt) for clip in CLIPS for attempt in (1, 2)]
    assert len(set(seeds)) == len(seeds)


def test_a_job_is_rendered_alike_by_every_release() -> None:
    assert seed_for("job-1", 0, 1) == 4236957066756089
    assert seed_for("job-1", 4, 2) == 698459295077361


# The reference workflow for small cards


def test_the_reference_workflow_loads_the_gguf_model_and_its_parts() -> None:
    graph = json.loads(REFERENCE.read_text())
    assert inputs_of(graph, "UnetLoaderGGUF") == {"unet_name": "ltx-2.3-22b-distilled-Q4_K_M.gguf"}
    assert inputs_of(graph, "VAELoader") == {"vae_name": "LTX23_video_vae_bf16.safetensors"}
    encoders = inputs_of(graph, "DualCLIPLoaderGGUF")
    assert encoders == inputs_of(built(), "DualCLIPLoaderGGUF")


def test_the_reference_workflow_is_the_workers_but_for_its_loaders() -> None:
    reference = json.loads(REFERENCE.read_text())
    ours = build_workflow(REFERENCE_SPEC, settings())
    gguf = {"UnetLoaderGGUF": {0: "model"}, "VAELoader": {0: "vae"}}
    checkpoint = {"CheckpointLoaderSimple": {0: "model", 2: "vae"}}
    assert drawn(reference, gguf) == drawn(ours, checkpoint)
    # One loader became two; a node that led nowhere would be one too many.
    assert len(reference) == len(ours) + 1


def drawn(graph: Graph, loaders: dict[str, dict[int, str]]) -> Any:
    """The graph as a tree from its video on, so that node ids do not matter."""

    def draw(link: list[Any]) -> Any:
        kind, inputs, slot = source(graph, link)
        if kind in loaders:
            return loaders[kind][slot]
        return kind, slot, {name: draw_value(value) for name, value in inputs.items()}

    def draw_value(value: Any) -> Any:
        return draw(value) if isinstance(value, list) else value

    return draw([node_id(graph, "VHS_VideoCombine"), 0])


def test_the_reference_workflow_has_a_title_for_people_on_every_node() -> None:
    graph = json.loads(REFERENCE.read_text())
    for name, node in graph.items():
        assert name.isdecimal()
        assert set(node) == {"class_type", "inputs", "_meta"}
        assert node["_meta"]["title"]


# The validator notices what is wrong

Mutation = Callable[[Graph], None]


def put(kind: str, name: str, value: Any) -> Mutation:
    def mutate(graph: Graph) -> None:
        inputs_of(graph, kind)[name] = value

    return mutate


def drop(kind: str, *names: str) -> Mutation:
    def mutate(graph: Graph) -> None:
        for name in names:
            del inputs_of(graph, kind)[name]

    return mutate


def respell(pattern: str) -> Mutation:
    """The pins of both pictures under another name, such as image.1."""

    def mutate(graph: Graph) -> None:
        pins = inputs_of(graph, PIN)
        for what in ("image", "index", "strength"):
            for n in (1, 2):
                pins[pattern.format(what=what, n=n)] = pins.pop(f"num_images.{what}_{n}")

    return mutate


def rename_class(kind: str, other: str) -> Mutation:
    def mutate(graph: Graph) -> None:
        graph[node_id(graph, kind)]["class_type"] = other

    return mutate


def link(kind: str, name: str, target: str, slot: int, *rest: int) -> Mutation:
    def mutate(graph: Graph) -> None:
        inputs_of(graph, kind)[name] = [node_id(graph, target), slot, *rest]

    return mutate


def link_by_number(graph: Graph) -> None:
    inputs = inputs_of(graph, "VAEDecode")
    inputs["samples"] = [int(inputs["samples"][0]), 0]


def remove_video(graph: Graph) -> None:
    del graph[node_id(graph, "VHS_VideoCombine")]


PIN, VIDEO, CHECKPOINT = "LTXVImgToVideoInplaceKJ", "VHS_VideoCombine", "CheckpointLoaderSimple"
LATENT, SAMPLE = "EmptyLTXVLatentVideo", "SamplerCustomAdvanced"
MISTAKES: dict[str, tuple[Mutation, str]] = {
    "an integer num_images": (put(PIN, "num_images", 2), "must be one of the strings"),
    "num_images for one picture": (put(PIN, "num_images", "1"), "no input num_images.image_2"),
    "num_images for three pictures": (put(PIN, "num_images", "3"), "strength_3"),
    "no num_images": (drop(PIN, "num_images"), "must be one of the strings"),
    "the spelling image.1": (respell("{what}.{n}"), "required_input_missing"),
    "the spelling image_1": (respell("{what}_{n}"), "required_input_missing"),
    "the spelling num_images.image.1": (
        respell("num_images.{what}.{n}"),
        "required_input_missing",
    ),
    "no image_1": (drop(PIN, "num_images.image_1"), "num_images.image_1 is left out"),
    "no image_2": (drop(PIN, "num_images.image_2"), "num_images.image_2 is left out"),
    "no index_2": (drop(PIN, "num_images.index_2"), "num_images.index_2 is left out"),
    "no strength_2": (drop(PIN, "num_images.strength_2"), "required_input_missing"),
    "a strength above 1": (put(PIN, "num_images.strength_2", 1.5), "value_bigger_than_max"),
    "an index below -9999": (put(PIN, "num_images.index_2", -10_000), "value_smaller_than_min"),
    "an index that is no whole number": (put(PIN, "num_images.index_2", -1.5), "converted from"),
    "a class that does not exist": (rename_class(PIN, "LTXVImgToVideo"), "missing_node_type"),
    "a node without a class": (rename_class(PIN, ""), "missing_node_type"),
    "a class with other inputs": (
        rename_class("VAEDecode", "VAEDecodeTiled"),
        "required_input_missing",
    ),
    "no output": (remove_video, "prompt_no_outputs"),
    "the clip where the vae is due": (
        link("VAEDecode", "vae", CHECKPOINT, 1),
        "return_type_mismatch",
    ),
    "a slot that is not there": (link("VAEDecode", "vae", CHECKPOINT, 3), "list index out of"),
    "a link of three": (link("VAEDecode", "vae", CHECKPOINT, 2, 0), "bad_linked_input"),
    "a link to nowhere": (put("VAEDecode", "vae", ["77", 2]), "exception_during_inner"),
    "a link by number": (link_by_number, "exception_during_inner"),
    "a text where a link is due": (put("VAEDecode", "vae", "vae"), "needs a link"),
    "a circle": (link(PIN, "latent", SAMPLE, 0), "dependency_cycle"),
    "a nag scale above 100": (put("LTX2_NAG", "nag_scale", 101.0), "value_bigger_than_max"),
    "a nag alpha above 1": (put("LTX2_NAG", "nag_alpha", 1.1), "value_bigger_than_max"),
    "a nag tau below 0": (put("LTX2_NAG", "nag_tau", -0.1), "value_smaller_than_min"),
    "a cfg below 0": (put("CFGGuider", "cfg", -1.0), "value_smaller_than_min"),
    "a seed of 65 bits": (put("RandomNoise", "noise_seed", 2**64), "value_bigger_than_max"),
    "a negative seed": (put("RandomNoise", "noise_seed", -1), "value_smaller_than_min"),
    "no seed": (drop("RandomNoise", "noise_seed"), "required_input_missing"),
    "1080 lines": (put(LATENT, "height", 1080), "no multiple of 32"),
    "120 frames": (put(LATENT, "length", 120), "not 8n + 1"),
    "a frame too small": (put(LATENT, "width", 32), "value_smaller_than_min"),
    "a size in words": (put(LATENT, "width", "wide"), "invalid_input_type"),
    "a size as text": (put(LATENT, "width", "1920"), "would be converted"),
    "sigmas as a list": (put("ManualSigmas", "sigmas", SIGMAS), "bad_linked_input"),
    "sigmas that are none": (put("ManualSigmas", "sigmas", "many"), "no comma-separated numbers"),
    "no sigmas at all": (put("ManualSigmas", "sigmas", ""), "no comma-separated numbers"),
    "rising sigmas": (put("ManualSigmas", "sigmas", "0.0, 1.0"), "do not fall"),
    "an unknown sampler": (put("KSamplerSelect", "sampler_name", "nope"), "value_not_in_list"),
    "an unknown model": (put(CHECKPOINT, "ckpt_name", "x.ckpt"), "value_not_in_list"),
    "an unknown text encoder type": (
        put("DualCLIPLoaderGGUF", "type", "ltx"),
        "value_not_in_list",
    ),
    "an input nobody has": (put("VAEDecode", "tile", 512), "there is no input tile"),
    "an unknown format": (put(VIDEO, "format", "video/mp4"), "value_not_in_list"),
    "an unknown pixel format": (put(VIDEO, "pix_fmt", "nope"), "pix_fmt"),
    "a crf above 100": (put(VIDEO, "crf", 101), "crf"),
    "no crf": (drop(VIDEO, "crf"), "crf is left out"),
    "no save_metadata": (drop(VIDEO, "save_metadata"), "save_metadata is left out"),
    "save_metadata as text": (put(VIDEO, "save_metadata", "false"), "would be converted"),
    "no pingpong": (drop(VIDEO, "pingpong"), "required_input_missing"),
    "a loop count above 100": (put(VIDEO, "loop_count", 101), "value_bigger_than_max"),
}


@pytest.mark.parametrize("where", SOURCES)
@pytest.mark.parametrize(("mutate", "complaint"), MISTAKES.values(), ids=MISTAKES)
def test_the_validator_refuses_a_workflow_with(
    mutate: Mutation, complaint: str, where: str
) -> None:
    graph = copy.deepcopy(built())
    assert judge(graph, where).ok
    mutate(graph)
    verdict = judge(graph, where)
    assert not verdict.ok
    told = json.dumps([verdict.error, verdict.node_errors, verdict.mistakes])
    assert complaint in told


@pytest.mark.parametrize("where", SOURCES)
def test_the_validator_refuses_a_picture_that_was_never_uploaded(where: str) -> None:
    verdict = validate(
        built(), schemas_of(where), strict=True, image_exists=lambda name: name == "a-first.png"
    )
    told = json.dumps(verdict.node_errors)
    assert "custom_validation_failed" in told
    assert "a-last.png" in told
