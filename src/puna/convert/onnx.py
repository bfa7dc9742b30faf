"""Export to ONNX with the builder of onnxruntime-genai (extra "onnx"), which reads the Hugging Face layout.

The builder runs offline in a process of its own. Its tokenizer omits the begin token (onnxruntime-genai 0.18, November
2026): callers must prepend that id.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from puna.core.errors import PunaError
from puna.core.files import new_directory, require_space
from puna.model.store import load_config, tensor_files

NEEDED = ("onnxruntime_genai", "onnxruntime", "onnx", "onnx_ir", "transformers")


def missing_packages() -> list[str]:
    """The packages the builder needs that are not installed."""
    return [name.replace("_", "-") for name in NEEDED if importlib.util.find_spec(name) is None]


def export_onnx(directory: Path, out: Path) -> None:
    """Write the model in `directory` as the new folder `out`, float32 for CPUs.

    Raises PunaError when a package is missing, `out` exists, the disk is too small or the builder fails.
    """
    missing = missing_packages()
    if missing:
        raise PunaError(
            f"Writing ONNX needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed.",
            "Install with pip install 'puna[onnx]' transformers.",
        )
    config = load_config(directory)
    tensor_files(directory, config)
    require_space(out.parent, config.num_parameters() * 4 + (64 << 20), f"The ONNX model {out.name}")
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    with new_directory(out) as place, tempfile.TemporaryDirectory() as scratch:
        place.rmdir()  # the builder creates it
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(directory.resolve())]
        command += ["-o", str(place), "-p", "fp32", "-e", "cpu", "-c", scratch]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **offline}, check=False)
        if done.returncode or not (place / "model.onnx").is_file():
            lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
            raise PunaError(
                f"The ONNX builder failed on {directory}: {lines[-1]}.",
                "Its version may not support this model; update it.",
            )
