"""Broken and strange data given to the command line: handled, or refused in a line that names the file."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

import main
from datamodules import ImageFolder
from datamodules.tiny_imagenet_classes import CLASSES
from tests.archives import Archive, write_image_folder, write_zip
from tests.faults.fuzz import LINES

EXPERIMENTS = Path(main.__file__).parent / "experiments"
SMALL = {"dim": 16, "depth": 1, "heads": 2, "dim_head": 4, "patch_size": 8}
COMMAND = [
    *("fit", "--config", str(EXPERIMENTS / "vit.yaml")),
    *(f"--model.net.{name}={size}" for name, size in SMALL.items()),
    "--trainer.fast_dev_run=true",
]
WNID = next(iter(CLASSES))


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "current").mkdir()
    monkeypatch.chdir(tmp_path / "current")
    monkeypatch.setenv("WANDB_MODE", "disabled")


def inside(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder."""
    found = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in found}


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], folder: Path) -> str:
    """What is said, after nothing has changed anywhere."""
    before = inside(folder)
    assert main.main([*COMMAND, *arguments]) == 1
    told = capsys.readouterr().err
    assert 1 <= len(told.splitlines()) <= LINES
    assert "Traceback" not in told
    assert inside(folder) == before
    return told


def on(data: str, **arguments: object) -> list[str]:
    return [f"--data={data}", *(f"--data.{name}={value}" for name, value in arguments.items())]


@pytest.fixture
def folder_of_tiny(tiny_imagenet: Archive) -> Path:
    """Tiny ImageNet as somebody unpacked it."""
    with ZipFile(tiny_imagenet.path) as archive:
        archive.extractall(tiny_imagenet.folder)
    tiny_imagenet.path.unlink()
    return tiny_imagenet.folder


# The archive as it lies there: what is done to its bytes.
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[: len(data) // 2],
    "one byte short": lambda data: data[:-1],
    "one bit turned": lambda data: data[:1000] + bytes([data[1000] ^ 1]) + data[1001:],
    "appended to": lambda data: data + b"\n",
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("data", ["CIFAR10", "TinyImageNet"])
def test_an_archive_that_was_tampered_with_is_refused_by_name(
    data: str,
    damage: Callable[[bytes], bytes],
    cifar10: Archive,
    tiny_imagenet: Archive,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    archive = cifar10 if data == "CIFAR10" else tiny_imagenet
    archive.path.write_bytes(damage(archive.path.read_bytes()))
    assert archive.path.name in refused(on(data, **archive.init_args), capsys, tmp_path)


@pytest.mark.parametrize("data", ["CIFAR10", "TinyImageNet"])
@pytest.mark.parametrize("place", ["data", "new/folders/data"])
def test_a_refused_download_leaves_not_even_a_folder(
    data: str, place: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    told = refused(on(data, root=place, mirror="http://127.0.0.1:9"), capsys, tmp_path)
    assert "overlays/digits.yaml" in told


def test_an_archive_that_lost_its_annotations_is_refused_by_name(
    tiny_imagenet: Archive, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with ZipFile(tiny_imagenet.path) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if "val_annotations" not in name}
    changed = write_zip(tiny_imagenet.path, files)
    told = refused_test(on("TinyImageNet", **changed.init_args), changed.folder, capsys, tmp_path)
    assert "val_annotations.txt" in told


def test_a_folder_that_lost_its_annotations_is_refused_by_name(
    folder_of_tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("datamodules.TinyImageNet.per_class", {"train": 2, "test": 1})
    annotations = folder_of_tiny / "tiny-imagenet-200" / "val" / "val_annotations.txt"
    annotations.unlink()
    assert str(annotations) in refused_test(on("TinyImageNet", root=folder_of_tiny), folder_of_tiny, capsys, tmp_path)


def refused_test(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> str:
    """What `test` says of the official test split, which `fit` never opens."""
    own = [each for each in COMMAND if "fast_dev_run" not in each]
    quick = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1"]
    assert main.main([*own, *arguments, *quick]) == 0
    (run,) = Path("runs/vit").iterdir()
    shutil.rmtree(folder / "cache")
    capsys.readouterr()
    before = inside(tmp_path)
    assert main.main(["test", "--ckpt_path", str(run)]) == 1
    assert inside(tmp_path) == before
    told = capsys.readouterr().err
    assert len(told.splitlines()) <= LINES
    return told


TINY_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "broken image": (
        lambda root: next((root / "train" / WNID / "images").iterdir()).write_bytes(b"\xff\xd8\xff poison"),
        f"{WNID}_",
    ),
    "class without images": (
        lambda root: [path.unlink() for path in (root / "train" / WNID / "images").iterdir()],
        f"of {WNID} it has 0",
    ),
    "unknown class id": (lambda root: (root / "train" / WNID).rename(root / "train" / "n00000000"), "n00000000"),
    "no list of classes": (lambda root: (root / "wnids.txt").unlink(), "wnids.txt"),
    "another list of classes": (lambda root: (root / "wnids.txt").write_text("n00000000\n"), "wnids.txt"),
    "no train": (lambda root: shutil.rmtree(root / "train"), "Tiny ImageNet is not in"),
}


@pytest.mark.parametrize(("fault", "told"), TINY_FAULTS.values(), ids=TINY_FAULTS)
def test_a_folder_of_tiny_imagenet_with_a_fault_is_refused_by_name(
    fault: Callable[[Path], object],
    told: str,
    folder_of_tiny: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("datamodules.TinyImageNet.per_class", {"train": 2, "test": 1})
    fault(folder_of_tiny / "tiny-imagenet-200")
    assert told in refused(on("TinyImageNet", root=folder_of_tiny), capsys, tmp_path)


@pytest.mark.parametrize("in_memory", ["true", "false"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_jpeg_that_breaks_in_the_middle_is_refused_by_name(
    in_memory: str, workers: int, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root = write_image_folder(tmp_path / "images", 4)
    for path in sorted(root.rglob("*.png")):
        Image.open(path).resize((64, 64)).save(path.with_suffix(".jpg"), "JPEG")
        path.unlink()
    # all of one class: whichever are cut out for validation or test, one is read
    for path in (root / "bee").iterdir():
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    arguments = on("ImageFolder", root=root, image_size=16, in_memory=in_memory, num_workers=workers, val_fraction=0)
    told = refused([*arguments, "--trainer.fast_dev_run=99"], capsys, tmp_path)
    assert "cannot read the image" in told
    assert str(root / "bee") in told
    assert "truncated" in told


def test_an_empty_class_folder_is_refused_by_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    root = write_image_folder(tmp_path / "images", 4)
    (root / "dög with space").mkdir()
    assert str(root / "dög with space") in refused(on("ImageFolder", root=root), capsys, tmp_path)


def save(image: Image.Image, path: Path, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


RED = Image.new("RGB", (24, 20), (250, 10, 10))


def strange(root: Path) -> dict[str, Path]:
    """Red images of every strange kind, under strange names."""
    kinds = {
        "colour": (RED, "a plain one.png", {}),
        "CMYK": (RED.convert("CMYK"), "cmyk, mit Umlaut ä.jpg", {}),
        "palette": (RED.quantize(4), "名前.gif", {}),
        "transparent": (RED.convert("RGBA"), "трава 100%.png", {}),
        "YCbCr": (RED.convert("YCbCr"), 'it\'s "quoted".jpg', {}),
        "Lab": (to_lab(RED), "lab.tif", {}),
        "animated": (RED, "moving {0}.gif", {"save_all": True, "append_images": [Image.new("RGB", (24, 20), "blue")]}),
        "animated webp": (
            RED,
            "moving.webp",
            {"save_all": True, "append_images": [Image.new("RGB", (24, 20), "blue")]},
        ),
        "animated png": (RED, "moving.png", {"save_all": True, "append_images": [Image.new("RGB", (24, 20), "blue")]}),
    }
    places = {}
    for kind, (image, name, options) in kinds.items():
        places[kind] = root / "red ones é" / name
        save(image, places[kind], **options)
    return places


def to_lab(image: Image.Image) -> Image.Image:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(image, *profiles, outputMode="LAB")
    assert lab is not None
    return lab


def test_images_of_every_kind_under_every_name_are_what_they_show(tmp_path: Path) -> None:
    root = tmp_path / "my images"
    places = strange(root)
    write_image_folder(root, 3, ("bee",))
    data = ImageFolder(root=root, image_size=16, val_fraction=0.0, in_memory=False)
    data.setup(None)
    batches = [*data.train_dataloader(), *data.test_dataloader()]
    images, labels = torch.cat([each.images for each in batches]), torch.cat([each.labels for each in batches])
    red = images[labels == data.class_names.index("red ones é")].float().mean((2, 3))
    assert len(red) == len(places)
    # JPEG and a palette of four colours move a value a little
    assert (red - torch.tensor([250.0, 10.0, 10.0])).abs().max() < 16
    assert main.main([*COMMAND, *on("ImageFolder", root=root, image_size=16)]) == 0


def test_grey_images_of_one_to_sixteen_bits_are_one_grey(tmp_path: Path) -> None:
    values = np.linspace(0, 255, 400).reshape(20, 20).astype(np.uint8)
    grey = Image.fromarray(values)
    root = tmp_path / "grey"
    save(grey, root / "a" / "8.png")
    save(Image.fromarray(values.astype(np.uint16) * 257), root / "a" / "16.png")
    save(Image.fromarray(values.astype(np.uint16) * 257), root / "a" / "16.tif")
    save(grey.convert("LA"), root / "a" / "transparent.png")
    save(grey.point(lambda value: 255 * (value > 127), "1"), root / "b" / "1.png")
    for channels in (1, 3):
        data = ImageFolder(root=root, image_size=20, channels=channels, val_fraction=0.0, in_memory=False)
        data.setup(None)
        batches = [*data.train_dataloader(), *data.test_dataloader()]
        images, labels = torch.cat([each.images for each in batches]), torch.cat([each.labels for each in batches])
        assert (images[labels == 0] == torch.from_numpy(values)).all()
        assert sorted(images[labels == 1].unique().tolist()) == [0, 255]


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_photograph_is_upright_whichever_way_the_camera_was_held(turn: int, tmp_path: Path) -> None:
    scene = np.zeros((20, 20, 3), dtype=np.uint8)
    scene[:10, :10], scene[10:, 10:] = (250, 0, 0), (0, 0, 250)
    # what the camera stores so that EXIF's turn gives the scene back
    stored = {
        1: scene,
        2: scene[:, ::-1],
        3: scene[::-1, ::-1],
        4: scene[::-1],
        5: scene.transpose(1, 0, 2),
        6: np.rot90(scene, 1),
        7: scene[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(scene, -1),
    }[turn]
    exif = Image.Exif()
    exif[0x0112] = turn
    for number in range(2):
        save(Image.fromarray(np.ascontiguousarray(stored)), tmp_path / "images" / f"{number}" / "a.png", exif=exif)
    data = ImageFolder(root=tmp_path / "images", image_size=20, val_fraction=0.0, in_memory=False)
    image = data.read("train").fetch(torch.tensor([0]))[0]  # type: ignore[union-attr]
    assert image.permute(1, 2, 0).numpy().tolist() == scene.tolist()


def test_decoded_images_follow_every_change_of_their_source(tmp_path: Path) -> None:
    root = write_image_folder(tmp_path / "images", 4)

    def seen() -> bytes:
        data = ImageFolder(root=root, image_size=16, val_fraction=0.0)
        data.prepare_data()
        data.setup(None)
        batches = [*data.train_dataloader(), *data.test_dataloader()]
        order = torch.cat([batch.indices for batch in batches]).argsort()
        images, labels = torch.cat([each.images for each in batches]), torch.cat([each.labels for each in batches])
        return images[order].numpy().tobytes() + labels[order].numpy().tobytes()

    path = root / "bee" / "001.png"
    whole, picture = seen(), path.read_bytes()
    shown = {whole}
    # two pictures of one size in bytes: the second is told by its time alone
    for number, colour in enumerate(("red", "blue")):
        Image.new("RGB", (20, 20), colour).save(path, "BMP")
        os.utime(path, ns=(number, number))
        shown.add(seen())
    path.unlink()
    shown.add(seen())
    (root / "ant" / "001.png").rename(path)
    shown.add(seen())
    # the same images, of which another class comes first
    (root / "bee").rename(root / "a bee")
    shown.add(seen())
    assert len(shown) == 6
    (root / "a bee").rename(root / "bee")
    path.rename(root / "ant" / "001.png")
    path.write_bytes(picture)
    assert seen() == whole
    assert len(list((root / ".cache").iterdir())) == 2
