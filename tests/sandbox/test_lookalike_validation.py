"""The look-alike refuses and lets pass what the real ComfyUI does, to the letter."""

from __future__ import annotations

import pytest
from schemas import VERSIONS, load_schemas
from validation import validate

from tests.sandbox.conftest import Start
from tests.sandbox.lookalike import (
    Json,
    Lookalike,
    changed,
    flf2v,
    hear,
    is_end,
)

REFUSALS: dict[str, tuple[Json, str, str, str]] = {
    "a value above the maximum": (
        changed("19", loop_count=500), "19", "value_bigger_than_max", "loop_count",
    ),
    "a value below the minimum": (
        changed("16", noise_seed=-1), "16", "value_smaller_than_min", "noise_seed",
    ),
    "a strength that is left out": (
        changed("12", **{"num_images.strength_2": None}), "12",
        "required_input_missing", "strength_2",
    ),
    "a strength above one": (
        changed("12", **{"num_images.strength_2": 1.5}), "12",
        "value_bigger_than_max", "num_images.strength_2",
    ),
    "a model that is not there": (
        changed("1", ckpt_name="x.safetensors"), "1", "value_not_in_list",
        "ckpt_name: 'x.safetensors' not in ['ltx-2.3-22b-distilled-fp8.safetensors',"
        " 'ltx-2.3-22b-dev-fp8.safetensors']",
    ),
    "a word for a number": (
        changed("11", width="wide"), "11", "invalid_input_type",
        "width, wide, invalid literal for int() with base 10: 'wide'",
    ),
    "a list that is no link": (
        changed("13", sigmas=[1.0, 0.5, 0.0]), "13", "bad_linked_input", "sigmas",
    ),
    "a mask for an image": (
        changed("9", image=["7", 1]), "9", "return_type_mismatch",
        "image, received_type(MASK) mismatch input_type(IMAGE)",
    ),
    "an image that was never uploaded": (
        changed("7", image="nope.png"), "7", "custom_validation_failed",
        "image - Invalid image file: nope.png",
    ),
    "a link to nowhere": (
        changed("9", image=["77", 0]), "9", "exception_during_inner_validation", "'77'",
    ),
    "a node id that is a number": (
        changed("9", image=[7, 0]), "9", "exception_during_inner_validation", "7",
    ),
    "a circle": (changed("9", image=["9", 0]), "9", "dependency_cycle", "9 -> 9"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_it_refuses(comfyui: Lookalike, case: str) -> None:
    graph, node, kind, details = REFUSALS[case]
    answer = comfyui.submit(graph)
    body = answer.json()
    assert answer.status_code == 400
    assert body["error"]["type"] == "prompt_outputs_failed_validation"
    report = body["node_errors"][node]
    assert [(error["type"], error["details"]) for error in report["errors"]] == [(kind, details)]
    assert report["dependent_outputs"] == ["19"]
    assert report["class_type"] == flf2v()[node]["class_type"]


def test_a_refusal_has_the_real_body_to_the_letter(comfyui: Lookalike) -> None:
    assert comfyui.submit(changed("19", loop_count=500)).json() == {
        "error": {
            "type": "prompt_outputs_failed_validation",
            "message": "Prompt outputs failed validation",
            "details": "Value 500 bigger than max of 100: loop_count",
            "extra_info": {},
        },
        "node_errors": {
            "19": {
                "errors": [
                    {
                        "type": "value_bigger_than_max",
                        "message": "Value 500 bigger than max of 100",
                        "details": "loop_count",
                        "extra_info": {
                            "input_name": "loop_count",
                            "input_config": [
                                "INT",
                                {"default": 0, "min": 0, "max": 100, "step": 1},
                            ],
                            "received_value": 500,
                        },
                    }
                ],
                "dependent_outputs": ["19"],
                "class_type": "VHS_VideoCombine",
            }
        },
    }


def test_prompts_without_sense_are_refused_as_a_whole(comfyui: Lookalike) -> None:
    unknown = {**flf2v(), "9": {"class_type": "NoSuchNode", "inputs": {}}}
    answers = {
        "missing_node_type": comfyui.submit(unknown),
        "prompt_no_outputs": comfyui.submit({}),
        "no_prompt": comfyui.post("/prompt", {}),
        "invalid_prompt_id": comfyui.submit(flf2v(), prompt_id="job 42"),
    }
    for kind, answer in answers.items():
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == kind
        assert answer.json()["node_errors"] == {}
    assert comfyui.post("/prompt", data="{").status_code == 500


def test_one_bad_output_of_two_is_dropped_and_the_rest_runs(comfyui: Lookalike) -> None:
    graph = {**flf2v(), "20": {"class_type": "PreviewImage", "inputs": {"images": ["77", 0]}}}
    ws = comfyui.connect()
    answer = comfyui.submit(graph)
    assert answer.status_code == 200
    error = answer.json()["node_errors"]["20"]["errors"][0]
    assert (error["type"], error["details"]) == ("exception_during_validation", "'77'")
    assert "execution_success" in [kind for kind, _ in hear(ws, is_end)]
    ws.close()


def test_the_older_version_takes_any_prompt_id(start: Start) -> None:
    older = start("--normalvram", LOOKALIKE_VERSION="0.21").ready().upload_pair()
    assert older.submit(flf2v(), prompt_id=42).json()["prompt_id"] == "42"
    assert older.get("/system_stats").json()["system"]["comfyui_version"] == "0.21.0"


def test_missing_nodes_and_models_are_missing_everywhere(start: Start) -> None:
    poor = start(
        LOOKALIKE_MISSING_NODES="LTX2_NAG,VAELoaderKJ",
        LOOKALIKE_MISSING_MODELS="gemma-3-12b-it-qat-Q4_K_M.gguf",
    ).ready()
    known = poor.get("/object_info").json()
    assert {"LTX2_NAG", "VAELoaderKJ"}.isdisjoint(known)
    names = known["DualCLIPLoaderGGUF"]["input"]["required"]["clip_name1"][0]
    assert "gemma-3-12b-it-qat-Q4_K_M.gguf" not in names
    assert poor.get("/object_info/LTX2_NAG").json() == {}
    assert poor.submit(flf2v()).json()["error"]["type"] == "missing_node_type"


@pytest.mark.parametrize("version", VERSIONS)
def test_the_recipe_stands_the_strict_validation(version: str) -> None:
    assert validate(flf2v(), load_schemas(version), strict=True).ok


MISTAKES: dict[str, tuple[str, Json]] = {
    "num_images as a number": ("12", {"num_images": 2}),
    "no last image": ("12", {"num_images.image_2": None}),
    "no last index": ("12", {"num_images.index_2": None}),
    "an input nobody knows": ("17", {"denoise": 1.0}),
    "a width that is cut": ("11", {"width": 770}),
    "a length that is cut": ("11", {"length": 98}),
    "no sigmas": ("13", {"sigmas": ""}),
    "sigmas that are none": ("13", {"sigmas": "1.0, high, 0.0"}),
    "a pixel format of another kind": ("19", {"pix_fmt": "nope"}),
    "a crf that is left out": ("19", {"crf": None}),
    "metadata as a word": ("19", {"save_metadata": "false"}),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_the_strict_validation_finds_what_the_server_lets_pass(case: str) -> None:
    node, inputs = MISTAKES[case]
    lenient = validate(changed(node, **inputs), load_schemas())
    strict = validate(changed(node, **inputs), load_schemas(), strict=True)
    assert lenient.ok
    assert strict.error is None
    assert all(mistake.startswith(f"node {node} ") for mistake in strict.mistakes)
    assert strict.mistakes
