import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as reference

from datamodules.errors import DataError
from datamodules.images import EncodedSamples, FolderStore, ZipStore, decode


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


RAMP = np.arange(48 * 32 * 3, dtype=np.uint8).reshape(48, 32, 3)
COLOUR = Image.fromarray(RAMP)


def test_a_colour_image_of_the_right_size_is_read_as_it_is() -> None:
    assert (decode(saved(COLOUR), "x", (48, 32), 3) == RAMP.transpose(2, 0, 1)).all()


def test_grey_becomes_three_equal_channels_and_colour_becomes_grey() -> None:
    grey = COLOUR.convert("L")
    pixels = decode(saved(grey), "x", (48, 32), 3)
    assert pixels.shape == (3, 48, 32)
    assert (pixels == np.asarray(grey)).all()
    assert (decode(saved(COLOUR), "x", (48, 32), 1)[0] == np.asarray(grey)).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_become_the_upper_eight_not_white(kind: str) -> None:
    values = np.arange(48 * 32, dtype=np.uint16).reshape(48, 32) * 42
    assert (decode(saved(Image.fromarray(values), kind), "x", (48, 32), 1)[0] == values >> 8).all()


def test_cmyk_palettes_and_transparency_become_rgb() -> None:
    red = Image.new("RGB", (8, 8), (250, 5, 5))
    for image, kind in ((red.convert("CMYK"), "TIFF"), (red.convert("P"), "GIF"), (red.convert("RGBA"), "PNG")):
        pixels = decode(saved(image, kind), "x", (8, 8), 3)
        assert np.abs(pixels.reshape(3, -1).mean(1) - [250, 5, 5]).max() < 6, image.mode


def test_a_photograph_is_turned_upright() -> None:
    exif = Image.Exif()
    # 6: the first row of the file is the right-hand side of the scene
    exif[0x0112] = 6
    pixels = decode(saved(COLOUR, exif=exif), "x", (32, 48), 3)
    assert (pixels == np.rot90(RAMP, -1).transpose(2, 0, 1)).all()


@pytest.mark.parametrize("size", [(16, 16), (24, 10), (96, 96)], ids=str)
def test_other_sizes_are_scaled_with_antialiasing_and_cropped_at_the_centre(size: tuple[int, int]) -> None:
    smooth = np.linspace(0, 255, 60 * 90 * 3).reshape(60, 90, 3)
    smooth[:, :, 1] = np.linspace(0, 255, 90)
    image = torch.from_numpy(smooth.astype(np.uint8)).permute(2, 0, 1)
    scale = max(size[0] / 60, size[1] / 90)
    expected = reference.resize(image, [round(60 * scale), round(90 * scale)], antialias=True)
    expected = reference.center_crop(expected, [*size])
    pixels = decode(saved(Image.fromarray(smooth.astype(np.uint8))), "x", size, 3)
    # Pillow crops by fractions of a pixel where torchvision rounds: half a pixel of a ramp is a few levels
    assert np.abs(pixels.astype(int) - expected.numpy().astype(int)).max() <= 6
    # without antialiasing a checkerboard that is shrunk would not turn grey
    board = np.kron(np.indices((64, 64)).sum(0) % 2, np.ones((2, 2))).astype(np.uint8) * 255
    assert np.abs(decode(saved(Image.fromarray(board)), "x", (16, 16), 1).astype(int) - 127).max() < 20


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no image of a known kind"),
        (b"no image", "no image of a known kind"),
        (saved(COLOUR)[:100], "[Tt]runcated|broken"),
        (saved(COLOUR, "JPEG")[:-400], "truncated"),
        (saved(Image.fromarray(np.ones((4, 4), dtype=np.float32)), "TIFF"), "floating-point"),
        (saved(Image.fromarray(np.full((4, 4), 70000, dtype=np.int32)), "TIFF"), "16 bits"),
    ],
    ids=["empty", "text", "half a PNG", "short JPEG", "floats", "32 bits"],
)
def test_a_broken_image_is_named_in_one_line(data: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        decode(data, "cats/7.png", (8, 8), 3)
    assert "cannot read the image cats/7.png: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_image_that_would_fill_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match="exceeds limit"):
        decode(saved(COLOUR), "x", (8, 8), 3)


def test_images_come_out_of_a_folder_and_out_of_an_archive_alike(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(5)]
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for number, name in enumerate(names):
            data = saved(Image.fromarray(np.roll(RAMP, number, 0)))
            (tmp_path / name).write_bytes(data)
            archive.writestr(name, data)
    labels, rows = torch.arange(5), torch.tensor([3, 0, 3])
    stores = [FolderStore(tmp_path), ZipStore(tmp_path / "all.zip")]
    stores += [pickle.loads(pickle.dumps(store)) for store in stores]
    for store in stores:
        samples = EncodedSamples(store, names, labels, size=(48, 32), channels=3)
        images = samples.fetch(rows)
        assert images.shape == (3, 3, 48, 32)
        assert images[1].equal(torch.from_numpy(RAMP).permute(2, 0, 1))
        assert images[0].equal(images[2])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*bee.png: No such file"):
        FolderStore(tmp_path).read("bee.png")
    with zipfile.ZipFile(tmp_path / "all.zip", "w"):
        pass
    with pytest.raises(DataError, match=r"cannot read .*all.zip: bee.png"):
        ZipStore(tmp_path / "all.zip").read("bee.png")
