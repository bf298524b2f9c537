"""Executes the notebooks and writes the last picture of each, as docs/notebooks.md shows them.

    python notebooks/pictures.py docs

They read the runs in `runs/`, or in the folder that VIX_RUNS names.
"""

import base64
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
WIDTH = 900
"""Most pixels of a side, so that a page stays below 150 kB."""


def execute(notebook: Path, folder: Path) -> Path:
    """Executes a notebook and returns the copy of it, with outputs, in a folder."""
    command = ["-m", "nbconvert", "--to", "notebook", "--execute", "--output-dir", str(folder), str(notebook)]
    subprocess.run([sys.executable, *command], check=True)
    return folder / notebook.name


def last_picture(executed: Path) -> Image.Image:
    """Returns the last picture that an executed notebook shows."""
    cells = json.loads(executed.read_text(encoding="utf-8"))["cells"]
    outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    *_, last = (data["image/png"] for data in outputs if "image/png" in data)
    return Image.open(io.BytesIO(base64.b64decode(last)))


def write(notebook: Path, docs: Path) -> None:
    """Writes `<docs>/notebook_<name>.png`."""
    with tempfile.TemporaryDirectory() as folder:
        picture = last_picture(execute(notebook, Path(folder))).convert("RGB")
    picture.thumbnail((WIDTH, WIDTH))
    picture.quantize(method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(
        docs / f"notebook_{notebook.stem}.png", optimize=True
    )


if __name__ == "__main__":
    for each in sorted(HERE.glob("*.ipynb")):
        write(each, Path(sys.argv[1]))
