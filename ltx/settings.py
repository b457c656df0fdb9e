"""Everything the operator can set, read once from the environment and .env beside the script."""

from __future__ import annotations

import dataclasses
import io
import ipaddress
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import urlsplit

import dotenv

from ltx.errors import ConfigError
from ltx.text import to_number

T = TypeVar("T")

VERSION = "1.0.0"
Test = Callable[[str], object]
SAMPLERS = ("euler_ancestral_cfg_pp", "euler_ancestral", "euler")
SECRET_NAMES = ("VIDEOGEN_WORKER_SECRET", "BLOB_READ_WRITE_TOKEN")
# What ComfyUI is given by us; argparse takes any unique beginning of a flag for it.
OUR_FLAGS = {
    "--port": "COMFYUI_URL has the port",
    "--listen": "to watch from elsewhere, forward the port: ssh -L 8188:localhost:8188 BOX",
    **dict.fromkeys(
        ("--input-directory", "--output-directory", "--temp-directory", "--base-directory"),
        "the worker gives each process folders of its own",
    ),
    "--database-url": "the worker gives each process a database of its own",
    **dict.fromkeys(("--tls-keyfile", "--tls-certfile"), "the worker speaks plain HTTP to it"),
}
# requests looks for these in the process's environment by itself.
NETWORK_NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "requests_ca_bundle")
SYSTEMD_NAMES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Size(NamedTuple):
    """Width and height in pixels."""

    width: int
    height: int


def is_plain_url(url: str) -> bool:
    """True for an http(s) address with a host, a sane port and no credentials."""
    try:
        parts = urlsplit(url)
        # urlsplit drops a newline without a word; requests would send to another address.
        return bool(
            url.isprintable()
            and parts.scheme in ("http", "https")
            and parts.hostname
            and (parts.port is None or parts.port > 0)
            and "@" not in parts.netloc
        )
    except ValueError:
        return False


def to_size(text: str) -> Size | None:
    match = re.fullmatch(r"(\d{2,4})x(\d{2,4})", text)
    size = Size(int(match[1]), int(match[2])) if match else Size(0, 0)
    return size if all(64 <= side <= 4096 and side % 2 == 0 for side in size) else None


def split_words(text: str) -> tuple[str, ...]:
    """Words as a shell would take them; none when a quotation mark is left open."""
    try:
        return tuple(shlex.split(text))
    except ValueError:
        return ()


def find_our_flag(words: Sequence[str]) -> str:
    """The first word that would undo a flag of ours: as it is, cut short, or with a =value."""
    flags = (word.split("=")[0] for word in words if len(word) > 2)
    return next((flag for flag in flags if any(our.startswith(flag) for our in OUR_FLAGS)), "")


def split_list(text: str) -> list[str]:
    return [part for part in re.split(r"[,\s]+", text) if part]


def is_host(text: str) -> bool:
    """Whether an entry of FRAME_HOSTS is a name, an address, or a network like 10.0.0.0/8."""
    try:
        return "/" not in text or bool(ipaddress.ip_network(text, strict=False))
    except ValueError:
        return False


RENDER_NEEDS = ("COMFYUI_DIR", "COMFYUI_PYTHON")
RUN_NEEDS = ("API_URL", *SECRET_NAMES, *RENDER_NEEDS, "WATERMARK_PATH")


class Reader:
    """Reads settings one by one and remembers every problem, so that all are told together."""

    def __init__(self, environ: Mapping[str, str], needed: Iterable[str]) -> None:
        self.environ, self.needed, self.problems = environ, frozenset(needed), list[str]()

    def text(self, name: str, default: str = "", good: Test = bool, fix: str = "") -> str:
        """One variable, trimmed; the fix is told when the value is not good."""
        value = self.environ.get(name, "").strip() or default
        shown = "(hidden)" if name in SECRET_NAMES else repr(value)
        if not value and name in self.needed:
            self.problems.append(f"{name} is not set: put it into .env, see .env.example.")
        elif value and not good(value):
            self.problems.append(f"{name}={shown}: {fix}")
        return value

    def matching(self, name: str, pattern: str, fix: str) -> str:
        return self.text(name, "", re.compile(pattern).fullmatch, fix)

    def number(self, name: str, default: float, low: float, high: float) -> float:
        fix = f"give a number between {low:g} and {high:g}."
        value = self.text(name, f"{default:g}", lambda text: low <= to_number(text) <= high, fix)
        return to_number(value)

    def choice(self, name: str, options: Sequence[str]) -> str:
        return self.text(name, options[0], options.__contains__, f"use {' or '.join(options)}.")

    def switch(self, name: str) -> bool:
        return self.choice(name, ("1", "0")) == "1"

    def words(self, name: str) -> tuple[str, ...]:
        value = self.text(name, "", lambda text: split_words(text), "close the quotation marks.")
        if flag := find_our_flag(split_words(value)):
            why = next(why for our, why in OUR_FLAGS.items() if our.startswith(flag))
            self.problems.append(f"{name}={value!r}: leave out {flag}; {why}.")
        return split_words(value)

    def hosts(self, name: str) -> frozenset[str]:
        fix = "give names, addresses or networks like 198.18.0.0/15, with commas between."
        value = self.text(name, "", lambda text: all(map(is_host, split_list(text))), fix)
        return frozenset(split_list(value.lower()))

    def ca_bundle(self, name: str) -> str:
        fix = "there is no such file; give the certificates in one PEM file."
        return self.text(name, self.environ.get("SSL_CERT_FILE", ""), os.path.exists, fix)

    def url(self, name: str, default: str = "") -> str:
        fix = "give an address like https://example.com."
        return self.text(name, default, is_plain_url, fix).rstrip("/")

    def path(self, name: str, default: str = "", good: Test = bool, fix: str = "") -> Path:
        found = self.text(name, default, lambda text: good(os.path.expanduser(text)), fix)
        return Path(found).expanduser()

    def folder(self, name: str, holds: str) -> Path:
        fix = f"there is no {holds} in it; give the right folder."
        return self.path(name, "", lambda path: os.path.isfile(f"{path}/{holds}"), fix)

    def program(self, name: str) -> str:
        fix = "there is no such program; give the Python ComfyUI runs on."
        return str(self.path(name, "", shutil.which, fix))

    def state_dir(self, name: str) -> Path:
        home = self.environ.get("XDG_STATE_HOME") or "~/.local/state"
        # systemd lists several folders with colons; the unit asks for one.
        default = self.environ.get("STATE_DIRECTORY", "").split(":")[0] or f"{home}/ltx-worker"
        # ComfyUI reads it from YAML, which takes no other characters.
        fix = "give a path of printable characters."
        return self.path(name, default, str.isprintable, fix).absolute()

    def size(self, name: str, default: str) -> Size:
        fix = "give WIDTHxHEIGHT, both even, from 64 to 4096."
        return to_size(self.text(name, default, to_size, fix)) or Size(0, 0)

    def child_environ(self, _name: str) -> dict[str, str]:
        """Without our secrets, whatever they are called, and the password of a proxy."""
        secrets = [value for name in SECRET_NAMES if (value := self.environ.get(name, "").strip())]

        def is_hidden(name: str, value: str) -> bool:
            proxy = name.lower().endswith("_proxy") and "@" in value
            return proxy or name in SYSTEMD_NAMES or any(secret in value for secret in secrets)

        return {n: value for n, value in self.environ.items() if not is_hidden(n, value)}


def setting(read: Callable[..., T], name: str, *rule: object) -> T:
    """A Settings field that is read from the variable `name` by one of Reader's methods."""
    field: T = dataclasses.field(metadata={"read": lambda reader: read(reader, name, *rule)})
    return field


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything the operator can set; made once, nothing else reads the environment."""

    api_url: str = setting(Reader.url, "API_URL")
    secret: str = setting(
        Reader.matching,
        "VIDEOGEN_WORKER_SECRET",
        r"[!-~]{8,}",
        "use 8 or more plain characters: no spaces, no letters beyond ASCII.",
    )
    blob_token: str = setting(
        Reader.matching,
        "BLOB_READ_WRITE_TOKEN",
        r"vercel_blob_rw_[A-Za-z0-9]+_[A-Za-z0-9]+",
        "copy the store's token from Vercel; it looks like vercel_blob_rw_STORE_SECRET.",
    )
    blob_api_url: str = setting(Reader.url, "VERCEL_BLOB_API_URL", "https://vercel.com/api/blob")
    blob_access: str = setting(Reader.choice, "BLOB_ACCESS", ("public", "private"))
    comfyui_dir: Path = setting(Reader.folder, "COMFYUI_DIR", "main.py")
    comfyui_python: str = setting(Reader.program, "COMFYUI_PYTHON")
    comfyui_url: str = setting(Reader.url, "COMFYUI_URL", "http://localhost:8188")
    comfyui_args: tuple[str, ...] = setting(Reader.words, "COMFYUI_ARGS")
    comfyui_standby: bool = setting(Reader.switch, "COMFYUI_STANDBY")
    comfyui_restart: str = setting(Reader.choice, "COMFYUI_RESTART", ("clip", "job"))
    comfyui_idle_stop: float = setting(Reader.number, "COMFYUI_IDLE_STOP_S", 600, 0, 86_400)
    boot_timeout: float = setting(Reader.number, "COMFYUI_BOOT_TIMEOUT_S", 180, 1, 3600)
    watermark: Path = setting(Reader.path, "WATERMARK_PATH")
    frame_hosts: frozenset[str] = setting(Reader.hosts, "FRAME_HOSTS")
    ca_bundle: str = setting(Reader.ca_bundle, "REQUESTS_CA_BUNDLE")
    sampler: str = setting(Reader.choice, "LTX_SAMPLER", SAMPLERS)
    clip_gate: str = setting(Reader.choice, "CLIP_GATE", ("enforce", "warn", "off"))
    checkpoint: str = setting(
        Reader.text, "LTX_CHECKPOINT", "ltx-2.3-22b-distilled-fp8.safetensors"
    )
    text_encoder: str = setting(Reader.text, "LTX_TEXT_ENCODER", "gemma-3-12b-it-qat-Q4_K_M.gguf")
    text_projection: str = setting(
        Reader.text, "LTX_TEXT_PROJECTION", "ltx-2.3_text_projection_bf16.safetensors"
    )
    text_mode: str = setting(Reader.choice, "LTX_TEXT", ("job", "clip"))
    text_keep_gb: float = setting(Reader.number, "LTX_TEXT_KEEP_GB", 37, 0, 100_000)
    size: Size = setting(Reader.size, "VIDEO_SIZE", "1920x1080")
    poll_interval: float = setting(Reader.number, "POLL_INTERVAL_S", 5, 0.05, 3600)
    heartbeat_interval: float = setting(Reader.number, "HEARTBEAT_INTERVAL_S", 15, 0.05, 600)
    clip_timeout: float = setting(Reader.number, "CLIP_TIMEOUT_S", 600, 1, 86_400)
    job_timeout: float = setting(Reader.number, "JOB_TIMEOUT_S", 720, 1, 86_400)
    state_dir: Path = setting(Reader.state_dir, "STATE_DIR")
    worker_id: str = setting(
        Reader.matching, "WORKER_ID", r"[A-Za-z0-9_-]{1,128}", "use letters, digits, - and _."
    )
    notify_socket: str = setting(Reader.text, "NOTIFY_SOCKET")
    watchdog_usec: float = setting(Reader.number, "WATCHDOG_USEC", 0, 0, 1e12)
    journal_stream: str = setting(Reader.text, "JOURNAL_STREAM")
    child_environ: Mapping[str, str] = setting(Reader.child_environ, "")

    @classmethod
    def load(cls, environ: Mapping[str, str], needed: Iterable[str] = RUN_NEEDS) -> Settings:
        """Raises ConfigError that names every wrong variable, its value and the fix."""
        reader = Reader(environ, needed)
        values = {field.name: field.metadata["read"](reader) for field in dataclasses.fields(cls)}
        if reader.problems:
            raise ConfigError(*reader.problems)
        return cls(**values)

    @property
    def secrets(self) -> tuple[str, ...]:
        return tuple(value for value in (self.secret, self.blob_token) if value)


ENV_FILE = Path(__file__).resolve().parents[1] / ".env"


def read_environ() -> dict[str, str]:
    """The environment over the .env beside the script. Raises ConfigError.

    What requests reads by itself is honoured in .env too.
    """
    environ = {**read_env_file(), **os.environ}
    if bundle := environ.get("REQUESTS_CA_BUNDLE") or environ.get("SSL_CERT_FILE"):
        environ["REQUESTS_CA_BUNDLE"] = bundle
    os.environ.update({n: value for n, value in environ.items() if n.lower() in NETWORK_NAMES})
    return environ


def read_secret(name: str) -> str:
    """One of SECRET_NAMES as it is set by now. Raises ConfigError."""
    settings = Settings.load(read_environ(), needed=(name,))
    return settings.blob_token if name == "BLOB_READ_WRITE_TOKEN" else settings.secret


def read_env_file() -> dict[str, str]:
    """What .env sets; nothing where there is none. Raises ConfigError for what is no text."""
    if not ENV_FILE.exists():
        return {}
    try:
        text = ENV_FILE.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        fix = "save it as UTF-8 (iconv -f utf-16 or -f latin1 -t utf-8 makes it so)."
        raise ConfigError(f"{ENV_FILE} is not UTF-8 text: {fix}") from error
    except OSError as error:
        fix = "make it a file that you can read."
        raise ConfigError(f"{ENV_FILE}: {error.strerror}; {fix}") from error
    if "\0" in text:
        raise ConfigError(f"{ENV_FILE} holds a NUL character: save it as plain UTF-8 text.")
    found = dotenv.dotenv_values(stream=io.StringIO(text), interpolate=False)
    return {name: value for name, value in found.items() if value is not None}
