"""Makes a folder of images for those who have none at hand, out of photographs that come with scikit-image.

    python notebooks/photographs.py data/photographs

Four classes, each one photograph: an astronaut, a cat, a cup of coffee, a rocket. An image is a square of it, anywhere,
of a half to nine tenths of its shorter side, scaled to 96 x 96 pixels, every second one mirrored; 50 a class.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

SIDE, EACH = 96, 50
PHOTOGRAPHS = {"astronaut": data.astronaut, "cat": data.chelsea, "coffee": data.coffee, "rocket": data.rocket}


def write(folder: Path, each: int = EACH) -> Path:
    """Writes `<folder>/<class>/<number>.png`.

    Args:
        folder: Made where it is missing.
        each: Images of a class.
    """
    draw = np.random.default_rng(0)
    for name, photograph in PHOTOGRAPHS.items():
        whole = Image.fromarray(photograph())
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            side = int(draw.uniform(0.5, 0.9) * min(whole.size))
            left, top = (int(draw.uniform(0, room - side)) for room in whole.size)
            piece = whole.crop((left, top, left + side, top + side)).resize((SIDE, SIDE))
            if number % 2:
                piece = piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            piece.save(folder / name / f"{number:03}.png")
    return folder


if __name__ == "__main__":
    write(Path(sys.argv[1]))
