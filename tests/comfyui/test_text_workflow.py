"""The two ways to a clip's conditioning: with the encoder in its graph, and from files."""

from __future__ import annotations

from typing import Any

import pytest

from ltx.comfyui.workflow import NEGATIVE_PROMPT, ClipSpec, build_text_workflow, build_workflow
from ltx.settings import Settings, Size

SPEC = ClipSpec(2, "a.png", "b.png", "walk on", 7, "ltx-worker/one", Size(1280, 704))
KEYS = {"walk on": "0a" * 32, NEGATIVE_PROMPT: "1b" * 32}
ENCODERS = {"gemma.gguf": "DualCLIPLoaderGGUF", "gemma_FP8.SafeTensors": "DualCLIPLoader"}
Graph = dict[str, dict[str, Any]]


def settings(**changes: str) -> Settings:
    return Settings.load(changes, needed=())


def kinds(graph: Graph) -> list[str]:
    return [node["class_type"] for node in graph.values()]


def spelled(graph: Graph, value: Any) -> Any:
    """A graph from one input backwards, without node ids; a text by what it says or its key."""
    if not isinstance(value, list):
        return value
    node, slot = graph[value[0]], value[1]
    text = {"CLIPTextEncode": "text", "LTXWorkerLoadConditioning": "key"}.get(node["class_type"])
    if text:
        return KEYS.get(node["inputs"][text], node["inputs"][text])
    return [
        node["class_type"],
        slot,
        {name: spelled(graph, one) for name, one in node["inputs"].items()},
    ]


def end_of(graph: Graph) -> Any:
    (last,) = [name for name, node in graph.items() if node["class_type"] == "VHS_VideoCombine"]
    return spelled(graph, [last, 0])


def test_a_clip_from_files_is_the_same_clip_but_for_where_its_texts_come_from() -> None:
    with_encoder = build_workflow(SPEC, settings())
    from_files = build_workflow(SPEC, settings(), KEYS)
    assert end_of(from_files) == end_of(with_encoder)
    assert not {"CLIPTextEncode", "DualCLIPLoaderGGUF"} & set(kinds(from_files))


def test_a_text_without_a_key_is_never_rendered_as_something_else() -> None:
    with pytest.raises(KeyError):
        build_workflow(SPEC, settings(), {"walk on": "0a" * 32})


@pytest.mark.parametrize(("name", "loader"), ENCODERS.items())
def test_an_encoder_is_loaded_by_the_node_that_reads_its_kind(name: str, loader: str) -> None:
    wanted = settings(LTX_TEXT_ENCODER=name)
    for graph in (build_workflow(SPEC, wanted), build_text_workflow(KEYS, wanted)):
        assert [kind for kind in kinds(graph) if "CLIPLoader" in kind] == [loader]


def test_every_text_is_kept_under_its_own_key_and_then_the_encoder_rests() -> None:
    graph = build_text_workflow(KEYS, settings())
    savers = [
        node["inputs"]
        for node in graph.values()
        if node["class_type"] == "LTXWorkerSaveConditioning"
    ]
    kept = {graph[one["conditioning"][0]]["inputs"]["text"]: one["key"] for one in savers}
    assert kept == KEYS
    (rest,) = [n["inputs"] for n in graph.values() if n["class_type"] == "LTXWorkerRestTextEncoder"]
    before, chain = rest, []
    while "after" in before:
        before = graph[before["after"][0]]["inputs"]
        chain.append(before)
    assert chain == savers[::-1]


def test_without_texts_the_encoder_is_only_loaded() -> None:
    wanted = ["DualCLIPLoaderGGUF", "LTXWorkerHoldTextEncoder"]
    assert kinds(build_text_workflow({}, settings())) == wanted
