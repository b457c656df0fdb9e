"""What a node pack imports besides itself, for lack of the real torch and ComfyUI.

As there, a pack says `import torch`, `import folder_paths`, `import comfy.model_management`; so
this folder lies on the module search path, and the look-alike takes the same modules from here.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import folder_paths
import torch
from comfy import model_management

__all__ = ["folder_paths", "model_management", "torch"]
