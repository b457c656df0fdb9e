"""What ComfyUI's answers mean. Pure: knows no socket."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ltx.comfyui.conditioning import LOAD_NODE
from ltx.comfyui.workflow import Workflow
from ltx.errors import JobError
from ltx.text import as_dict, as_list, one_line

NODE_PACKS = {
    "DualCLIPLoaderGGUF": "ComfyUI-GGUF",
    "LTX2_NAG": "ComfyUI-KJNodes",
    "LTXVImgToVideoInplaceKJ": "ComfyUI-KJNodes",
    "VHS_VideoCombine": "ComfyUI-VideoHelperSuite",
}
MODEL_FOLDERS = {
    "ckpt_name": "models/checkpoints",
    "clip_name1": "models/text_encoders",
    "clip_name2": "models/text_encoders",
}


def describe_stranger(status: int, is_ours: bool = False) -> str:
    """What it means that an answer of this status, where ComfyUI should be, is none of its own.

    is_ours: the process that answers is one that we started.
    """
    if status in (401, 403, 407) or 300 <= status < 400:
        what = "a login pack or a proxy wants a password, which a worker has not"
        return f"it answers {status}: {what}; take it out of custom_nodes or of the way"
    if status in (502, 503, 504):
        return f"it answers {status}: a proxy stands there, and ComfyUI does not run behind it"
    whose = "" if is_ours else ": another program has the port"
    return f"it answers {status}, but not as ComfyUI{whose}"


class Gap(JobError):
    """Where a ComfyUI lacks what our graph needs, or has it otherwise."""


class MissingNode(Gap):
    """A node class that is not there; `pack` brings it, ComfyUI itself where that is empty."""

    def __init__(self, kind: str) -> None:
        self.pack = NODE_PACKS.get(kind, "")
        brings = self.pack or "a newer ComfyUI"
        super().__init__("comfyui_missing_node", f"Node {kind} is missing; install {brings}.")


class ConditioningLost(JobError):
    """A clip's process could not load the file of a text; encoded again, it may."""

    def __init__(self, message: str) -> None:
        super().__init__("comfyui_failed", message, again=True)


class MissingModel(Gap):
    """A model file that is not there; `folder` is below ComfyUI's."""

    def __init__(self, name: object, folder: str) -> None:
        self.name, self.folder = one_line(name, 120), folder
        super().__init__("comfyui_missing_model", f"Put {self.name} into ComfyUI's {folder}.")


class Misfit(Gap):
    """A node class is another than the one that this worker was written for.

    `pack` brought it: the name of a folder in custom_nodes, or ComfyUI.
    """

    def __init__(self, kind: str, info: Mapping[str, Any], what: str) -> None:
        where = str(info.get("python_module")).partition("custom_nodes.")[2]
        self.pack = one_line(where, 80) or "ComfyUI"
        older = f"update the older of {self.pack} and ltx-worker"
        super().__init__("comfyui_rejected", f"Node {kind} of {self.pack} {what}; {older}.")


class Declared(NamedTuple):
    """An input as /object_info declares it; kind is a type's name or the list of a combo."""

    kind: object
    extra: Mapping[str, Any]
    required: bool

    @property
    def options(self) -> list[Any]:
        """The choices of a combo in either way /object_info tells them; a dynamic one's keys."""
        if isinstance(self.kind, list):
            return self.kind
        options = as_list(self.extra.get("options"))
        return [one.get("key") if isinstance(one, dict) else one for one in options]

    def takes(self, kind: object) -> bool:
        """Whether an output of this type may be linked to it; what is no plain name may be."""
        if not isinstance(self.kind, str) or not isinstance(kind, str):
            return True
        ours, theirs = (set(name.split(",")) for name in (self.kind, kind))
        return "*" in ours | theirs or self.kind.startswith("COMFY_") or bool(ours & theirs)


def read_declared(entry: object, required: bool) -> Declared:
    kind, extra, *_ = [*as_list(entry), None, None]
    return Declared(kind, as_dict(extra), required)


def read_groups(groups: object) -> dict[str, Declared]:
    return {
        name: read_declared(entry, group == "required")
        for group in ("required", "optional")
        for name, entry in as_dict(as_dict(groups).get(group)).items()
    }


def declared_inputs(info: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Declared]:
    """The inputs a node class takes with these values, by name.

    A dynamic combo adds dotted names for the chosen option, a format of VHS plain ones.
    """
    inputs = read_groups(info.get("input"))
    for name, declared in list(inputs.items()):
        for option in map(as_dict, as_list(declared.extra.get("options"))):
            if option.get("key") == given.get(name):
                parts = read_groups(option.get("inputs"))
                inputs |= {f"{name}.{part}": one for part, one in parts.items()}
        chosen = as_list(as_dict(declared.extra.get("formats")).get(str(given.get(name))))
        plain = filter(None, map(as_list, chosen))
        inputs |= {str(name): read_declared(entry, False) for name, *entry in plain}
    return inputs


def find_gaps(workflow: Workflow, known: Mapping[str, Any]) -> Iterator[Gap]:
    """Where the workflow does not fit what /object_info tells of its node classes.

    Each gap is told of once: a class that is missing, a model file, an input that is required and
    not given or given and not known, a choice that is not offered, a link of another type.
    """
    told = set[str]()
    for node in workflow.values():
        for gap in node_gaps(node, workflow, known):
            if gap.detail not in told:
                told.add(gap.detail)
                yield gap


def node_gaps(
    node: Mapping[str, Any], workflow: Workflow, known: Mapping[str, Any]
) -> Iterator[Gap]:
    kind, given = node["class_type"], node["inputs"]
    info = as_dict(known.get(kind))
    if not info:
        yield MissingNode(kind)
        return
    inputs = declared_inputs(info, given)
    for name in sorted(name for name, one in inputs.items() if one.required and name not in given):
        yield Misfit(kind, info, f"wants an input {name}")
    for name, value in given.items():
        if name not in inputs:
            yield Misfit(kind, info, f"has no input {name}")
        elif isinstance(value, list):
            source = workflow[value[0]]["class_type"]
            outputs = as_list(as_dict(known.get(source)).get("output"))
            kinds = [*outputs[value[1] : value[1] + 1], "no such output"]
            if known.get(source) and not inputs[name].takes(kinds[0]):
                yield Misfit(kind, info, f"takes no output {value[1]} of {source} as {name}")
        # The images are uploaded later, so they are in no list yet.
        elif kind != "LoadImage":
            options = inputs[name].options
            if name in MODEL_FOLDERS and value not in options:
                yield MissingModel(value, MODEL_FOLDERS[name])
            elif options and value not in options:
                yield Misfit(kind, info, f"knows no {name} {one_line(repr(value), 120)}")


def read_rejection(body: object, status: int = 400) -> JobError:
    """What ComfyUI's refusal of a prompt means (POST /prompt, node_errors included)."""
    if not isinstance(body, dict):
        told = describe_stranger(status, is_ours=True)
        return JobError("comfyui_rejected", f"To a prompt {told}: {one_line(body, 200)}")
    error = as_dict(as_dict(body).get("error"))
    if error.get("type") == "missing_node_type":
        return MissingNode(one_line(as_dict(error.get("extra_info")).get("class_type")))
    complaints, kinds = list[str](), set[object]()
    for node in as_dict(as_dict(body).get("node_errors")).values():
        kinds.add(as_dict(node).get("class_type"))
        for problem in map(as_dict, as_list(as_dict(node).get("errors"))):
            extra = as_dict(problem.get("extra_info"))
            folder = MODEL_FOLDERS.get(str(extra.get("input_name")))
            if folder and problem.get("type") == "value_not_in_list":
                return MissingModel(extra.get("received_value"), folder)
            message = f"{problem.get('message')} ({problem.get('details')})"
            complaints.append(f"{as_dict(node).get('class_type')}: {message}")
    message = "; ".join(complaints) or f"{error.get('message', body)} {error.get('details', '')}"
    if LOAD_NODE in kinds:
        return ConditioningLost(one_line(message))
    return JobError("comfyui_rejected", one_line(message))


def read_history(record: Mapping[str, Any]) -> dict[str, Any]:
    """The outputs of a finished prompt. Raises JobError when it did not succeed."""
    status = as_dict(record.get("status"))
    if status.get("status_str") == "success":
        return as_dict(record.get("outputs"))
    name, data = "nothing said", dict[str, Any]()
    for message in as_list(status.get("messages"))[-1:]:
        name, data = str(as_list(message)[:1]), as_dict([*as_list(message), 0, 0][1])
    if "execution_interrupted" in name:
        raise JobError("comfyui_failed", "Somebody interrupted the prompt in ComfyUI.", again=True)
    kind, text = str(data.get("exception_type")), str(data.get("exception_message"))
    message = one_line(f"{data.get('node_type')}: {kind}: {text}")
    if data.get("node_type") == LOAD_NODE:
        raise ConditioningLost(message)
    if "OutOfMemory" in kind or "out of memory" in text.lower():
        raise JobError("gpu_out_of_memory", message, again=True)
    raise JobError("comfyui_failed", message)


class OutputFile(NamedTuple):
    """A file as ComfyUI names it: in its output or temp folder."""

    filename: str
    subfolder: str
    type: str


def find_video(outputs: Mapping[str, Any]) -> OutputFile:
    """The MP4 among a prompt's outputs. Raises JobError when there is none."""
    for output in map(as_dict, outputs.values()):
        for item in map(as_dict, as_list(output.get("gifs"))):
            file = OutputFile(*(item.get(name, "") for name in OutputFile._fields))
            if all(isinstance(part, str) for part in file) and file.filename.endswith(".mp4"):
                return file
    raise JobError("comfyui_failed", "ComfyUI reported success without a video.")
