"""What ComfyUI's answers mean. Pure: knows no socket."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

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


def missing_node(kind: str) -> JobError:
    pack = NODE_PACKS.get(kind, "a newer ComfyUI")
    return JobError("comfyui_missing_node", f"Node {kind} is missing; install {pack}.")


def missing_model(name: object, folder: str) -> JobError:
    told = f"Put {one_line(name, 120)} into ComfyUI's {folder}."
    return JobError("comfyui_missing_model", told)


def combo_options(declared: object) -> list[Any]:
    """The choices of a combo input in either way /object_info tells them."""
    kind, extra, *_ = [*as_list(declared), None, None]
    return kind if isinstance(kind, list) else as_list(as_dict(extra).get("options"))


def declared_inputs(info: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs a node class takes with these values, by name; each is its declaration.

    A dynamic combo adds dotted names for the chosen option, a format of VHS plain ones.
    """
    groups = as_dict(info.get("input"))
    inputs = {**as_dict(groups.get("required")), **as_dict(groups.get("optional"))}
    for name, declared in list(inputs.items()):
        extra = as_dict([*as_list(declared), None, None][1])
        for option in map(as_dict, as_list(extra.get("options"))):
            if option.get("key") == given.get(name):
                for group in as_dict(option.get("inputs")).values():
                    inputs |= {f"{name}.{part}": told for part, told in as_dict(group).items()}
        chosen = as_list(as_dict(extra.get("formats")).get(str(given.get(name))))
        inputs |= {str(one[0]): one[1:] for one in map(as_list, chosen) if one}
    return inputs


def find_gaps(workflow: Workflow, known: Mapping[str, Any]) -> Iterator[JobError]:
    """What of the workflow /object_info does not know. Each class is told of once."""
    for kind, given in {node["class_type"]: node["inputs"] for node in workflow.values()}.items():
        info = as_dict(known.get(kind))
        if not info:
            yield missing_node(kind)
            continue
        inputs = declared_inputs(info, given)
        pack = NODE_PACKS.get(kind, "ComfyUI")
        for name, value in given.items():
            # The images are uploaded later, so they are in no list yet.
            options = [] if kind == "LoadImage" else combo_options(inputs.get(name))
            if any(isinstance(option, dict) for option in options):
                options = [as_dict(option).get("key") for option in options]
            if name not in inputs:
                told = f"Node {kind} has no input {name}; update {pack}."
                yield JobError("comfyui_missing_node", told)
            elif name in MODEL_FOLDERS and value not in options:
                yield missing_model(value, MODEL_FOLDERS[name])
            elif options and value not in options:
                told = f"Node {kind} knows no {name} {value!r}; update {pack}."
                yield JobError("comfyui_missing_node", told)


def read_rejection(body: object) -> JobError:
    """What ComfyUI's refusal of a prompt means (POST /prompt, node_errors included)."""
    error = as_dict(as_dict(body).get("error"))
    if error.get("type") == "missing_node_type":
        return missing_node(one_line(as_dict(error.get("extra_info")).get("class_type")))
    complaints = []
    for node in as_dict(as_dict(body).get("node_errors")).values():
        for problem in map(as_dict, as_list(as_dict(node).get("errors"))):
            extra = as_dict(problem.get("extra_info"))
            folder = MODEL_FOLDERS.get(str(extra.get("input_name")))
            if folder and problem.get("type") == "value_not_in_list":
                return missing_model(extra.get("received_value"), folder)
            told = f"{problem.get('message')} ({problem.get('details')})"
            complaints.append(f"{as_dict(node).get('class_type')}: {told}")
    told = "; ".join(complaints) or f"{error.get('message', body)} {error.get('details', '')}"
    return JobError("comfyui_rejected", one_line(told))


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
    told = one_line(f"{data.get('node_type')}: {kind}: {text}")
    if "OutOfMemory" in kind or "out of memory" in text.lower():
        raise JobError("gpu_out_of_memory", told, again=True)
    raise JobError("comfyui_failed", told)


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
