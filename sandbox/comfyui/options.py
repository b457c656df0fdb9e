"""The command line of ComfyUI 0.21 and 0.27, and the folders it names."""

from __future__ import annotations

import argparse
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent

# Only one flag of a row may be given.
EXCLUSIVE_SWITCHES = [
    "--auto-launch",
    "--disable-auto-launch",
    "--cuda-malloc --disable-cuda-malloc",
    "--force-fp32 --force-fp16",
    "--fp32-unet --fp64-unet --bf16-unet --fp16-unet"
    + " --fp8_e4m3fn-unet --fp8_e5m2-unet --fp8_e8m0fnu-unet",
    "--fp16-vae --fp32-vae --bf16-vae",
    "--fp8_e4m3fn-text-enc --fp8_e5m2-text-enc --fp16-text-enc --fp32-text-enc --bf16-text-enc",
    "--use-split-cross-attention --use-quad-cross-attention --use-pytorch-cross-attention"
    + " --use-sage-attention --use-flash-attention",
    "--force-upcast-attention --dont-upcast-attention",
    "--gpu-only --highvram --lowvram --novram --cpu",
]
SWITCHES = (
    "--cpu-vae --force-channels-last --disable-ipex-optimize --supports-fp8-compute"
    " --disable-xformers --disable-async-offload --disable-dynamic-vram --enable-dynamic-vram"
    " --force-non-blocking --disable-smart-memory --deterministic --disable-pinned-memory"
    " --mmap-torch-files --disable-mmap --dont-print-server --quick-test-for-ci"
    " --windows-standalone-build --disable-metadata --disable-all-custom-nodes"
    " --disable-api-nodes --multi-user --log-stdout --enable-compress-response-body"
    " --enable-manager --disable-manager-ui --enable-manager-legacy-ui --enable-assets"
    " --disable-assets-autoscan"
)
VALUES = (
    "--tls-keyfile --tls-certfile --oneapi-device-selector --default-hashing-function"
    " --front-end-version --front-end-root --user-directory --comfy-api-base --database-url"
    " --base-directory --output-directory --temp-directory --input-directory"
)
NUMBERS = "--preview-size --reserve-vram --cuda-device --default-device"
SWITCHES_OF = {
    "0.21": "--normalvram",
    "0.27": "--fast-disk --high-ram --debug-hang --enable-asset-hashing",
}


def parse_options(argv: list[str], version: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="main.py")
    parser.add_argument("--listen", nargs="?", default="127.0.0.1", const="0.0.0.0,::")
    parser.add_argument("--port", type=int, default=8188)
    parser.add_argument("--max-upload-size", type=float, default=100.0, help="in MiB")
    parser.add_argument("--enable-cors-header", nargs="?", const="*")
    parser.add_argument("--verbose", nargs="?", default="INFO", const="DEBUG")
    methods = ["none", "auto", "latent2rgb", "taesd"]
    parser.add_argument("--preview-method", choices=methods, default="none")
    caches = parser.add_mutually_exclusive_group()
    caches.add_argument("--cache-classic", action="store_true")
    caches.add_argument("--cache-lru", type=int, default=0)
    caches.add_argument("--cache-none", action="store_true")
    _add_ignored(parser, caches, version)
    return parser.parse_args(argv)


def _add_ignored(
    parser: argparse.ArgumentParser, caches: argparse._MutuallyExclusiveGroup, version: str
) -> None:
    """Flags that the look-alike takes, as the real program does, and mostly ignores."""
    for row in EXCLUSIVE_SWITCHES:
        group = parser.add_mutually_exclusive_group()
        for flag in row.split():
            group.add_argument(flag, action="store_true")
    for flag in f"{SWITCHES} {SWITCHES_OF[version]}".split():
        parser.add_argument(flag, action="store_true")
    for flag in VALUES.split():
        parser.add_argument(flag)
    for flag in NUMBERS.split():
        parser.add_argument(flag, type=float)
    parser.add_argument("--directml", type=int, nargs="?", const=-1)
    parser.add_argument("--async-offload", type=int, nargs="?", const=2)
    parser.add_argument("--fast", nargs="*")
    parser.add_argument("--whitelist-custom-nodes", nargs="+", default=[])
    parser.add_argument("--extra-model-paths-config", nargs="+", action="append")
    caches.add_argument("--cache-ram", type=float, nargs="*")
    if version == "0.27":
        parser.add_argument("--vram-headroom", type=float)


@dataclass(frozen=True)
class Folders:
    input: Path
    output: Path
    temp: Path

    @classmethod
    def of(cls, options: argparse.Namespace) -> Folders:
        base = cls.home(options)
        if options.base_directory:
            os.listdir(base / "custom_nodes")  # the real one ends here too when it is absent
        temp_parent = Path(options.temp_directory) if options.temp_directory else base
        return cls(
            input=Path(options.input_directory or base / "input").absolute(),
            output=Path(options.output_directory or base / "output").absolute(),
            temp=temp_parent.absolute() / "temp",
        )

    @staticmethod
    def home(options: argparse.Namespace) -> Path:
        return Path(options.base_directory or HERE).absolute()

    def by_type(self, kind: str) -> Path | None:
        return self._roots().get(kind)

    def _roots(self) -> dict[str, Path]:
        return {"input": self.input, "output": self.output, "temp": self.temp}

    def prepare(self) -> None:
        self.wipe_temp()
        for folder in (self.input, self.output):
            folder.mkdir(parents=True, exist_ok=True)

    def wipe_temp(self) -> None:
        shutil.rmtree(self.temp, ignore_errors=True)

    def input_file(self, name: str) -> Path:
        """The file a LoadImage value means: "job/last.png", or "last.png [temp]"."""
        for kind, root in self._roots().items():
            if name.endswith(f" [{kind}]"):
                return root / name.removesuffix(f" [{kind}]")
        return self.input / name

    def has_input(self, name: str) -> bool:
        """Absolute paths pass, as on both real versions; a path that climbs out does not."""
        path = self.input_file(name)
        return path.is_file() and (Path(name).is_absolute() or ".." not in Path(name).parts)
