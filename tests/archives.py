"""Data sets in their real layout on disk at tiny size, and a server on the loopback that hands them out."""

import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datamodules.cifar10 import CIFAR10
from datamodules.tiny_imagenet_classes import CLASSES

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class Archive:
    """An archive in a folder of its own, and its md5: `CIFAR10(root=archive.folder, checksum=archive.checksum)`."""

    path: Path
    checksum: str

    @property
    def folder(self) -> Path:
        return self.path.parent

    @property
    def init_args(self) -> dict[str, str]:
        """Arguments of the datamodule that reads it, for YAML."""
        return {"root": str(self.folder), "checksum": self.checksum}


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def pictures(labels: list[int], size: int, channels: int, seed: int) -> Pixels:
    """Noisy images (n, y, x, c) whose colour tells their class, so that a net can learn it."""
    random = np.random.default_rng(seed)
    shades = np.random.default_rng(0).integers(40, 216, (1000, 1, 1, channels))
    noise = random.integers(-40, 40, (len(labels), size, size, channels))
    return (shades[labels] + noise).astype(np.uint8)


def python2_pickle(value: object) -> bytes:
    """A pickle as Python 2 with an old NumPy wrote it, like those of CIFAR-10: byte strings, `numpy.core`."""
    return b"\x80\x02" + _opcodes(value) + b"."


def _opcodes(value: object) -> bytes:
    if isinstance(value, bytes):
        return b"T" + len(value).to_bytes(4, "little") + value
    if isinstance(value, int):
        return b"J" + value.to_bytes(4, "little", signed=True)
    if isinstance(value, list):
        return b"](" + b"".join(map(_opcodes, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(_opcodes(key) + _opcodes(item) for key, item in value.items()) + b"u"
    assert isinstance(value, np.ndarray)
    kind = value.dtype.str[1:].encode()
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85" + _opcodes(b"b") + b"tR"
    dtype = (
        b"cnumpy\ndtype\n("
        + _opcodes(kind)
        + b"K\x00K\x01tR(K\x03"
        + _opcodes(b"|")
        + b"NNN"
        + b"J\xff\xff\xff\xff" * 2
    )
    dtype += b"K\x00tb"
    shape = b"(" + b"".join(map(_opcodes, value.shape)) + b"t"
    return empty + b"(K\x01" + shape + dtype + b"\x89" + _opcodes(value.tobytes()) + b"tb"


def cifar10_files(per_class: int = 2, seed: int = 0) -> dict[str, bytes]:
    """The files of `cifar-10-batches-py`; `per_class` images of each class in each of the six batches."""
    names = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]
    files = {}
    for number, name in enumerate(names):
        labels = np.random.default_rng(seed + number).permutation(list(range(10)) * per_class).tolist()
        images = pictures(labels, 32, 3, seed + number).transpose(0, 3, 1, 2).reshape(len(labels), -1)
        batch = {b"batch_label": name.encode(), b"labels": labels, b"data": np.ascontiguousarray(images)}
        files[name] = python2_pickle(batch | {b"filenames": [b"image.png"] * len(labels)})
    label_names = [name.encode() for name in CIFAR10.class_names]
    files["batches.meta"] = python2_pickle({b"label_names": label_names, b"num_vis": 3072})
    return files


def write_tar(path: Path, files: dict[str, bytes]) -> Archive:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return Archive(path, md5(path.read_bytes()))


def write_cifar10(folder: Path, per_class: int = 2, seed: int = 0) -> Archive:
    """`cifar-10-python.tar.gz` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    files = cifar10_files(per_class, seed)
    return write_tar(
        folder / "cifar-10-python.tar.gz", {f"cifar-10-batches-py/{name}": data for name, data in files.items()}
    )


def encoded(pixels: Pixels, kind: str = "JPEG") -> bytes:
    """One image (y, x, c) as a file."""
    file = io.BytesIO()
    Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0]).save(file, kind)
    return file.getvalue()


def tiny_imagenet_files(per_class: int = 2, test_per_class: int = 1) -> dict[str, bytes]:
    """The files below `tiny-imagenet-200`, with all 200 classes; the first image of each class in train is grey."""
    wnids = list(CLASSES)
    files = {"wnids.txt": "".join(f"{wnid}\n" for wnid in wnids).encode()}
    files["words.txt"] = "".join(f"{wnid}\t{name}\n" for wnid, name in CLASSES.items()).encode()
    for label, wnid in enumerate(wnids):
        images = pictures([label] * per_class, 64, 3, label)
        boxes = ""
        for number, image in enumerate(images):
            name = f"{wnid}_{number}.JPEG"
            files[f"train/{wnid}/images/{name}"] = encoded(image if number else image[..., :1])
            boxes += f"{name}\t0\t0\t62\t62\n"
        files[f"train/{wnid}/{wnid}_boxes.txt"] = boxes.encode()
    labels = np.random.default_rng(0).permutation(list(range(200)) * test_per_class).tolist()
    annotations = ""
    for number, (label, image) in enumerate(zip(labels, pictures(labels, 64, 3, 1), strict=True)):
        files[f"val/images/val_{number}.JPEG"] = encoded(image)
        annotations += f"val_{number}.JPEG\t{wnids[label]}\t0\t32\t44\t62\n"
    files["val/val_annotations.txt"] = annotations.encode()
    files["test/images/test_0.JPEG"] = encoded(pictures([0], 64, 3, 2)[0])
    return files


def write_zip(path: Path, files: dict[str, bytes]) -> Archive:
    with zipfile.ZipFile(path, "w") as file:
        for name, data in files.items():
            file.writestr(name, data)
    return Archive(path, md5(path.read_bytes()))


def write_tiny_imagenet(folder: Path, per_class: int = 2, test_per_class: int = 1) -> Archive:
    """`tiny-imagenet-200.zip` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    files = tiny_imagenet_files(per_class, test_per_class)
    return write_zip(
        folder / "tiny-imagenet-200.zip", {f"tiny-imagenet-200/{name}": data for name, data in files.items()}
    )


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    """Files by their path below `folder`."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_image_folder(folder: Path, per_class: int = 10, classes: tuple[str, ...] = ("bee", "ant", "cow")) -> Path:
    """A folder of class folders of 20 x 20 PNG images."""
    for label, name in enumerate(classes):
        for number, image in enumerate(pictures([label] * per_class, 20, 3, label)):
            write_files(folder, {f"{name}/{number:03}.png": encoded(image, "PNG")})
    return folder


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Says nothing."""


class _BreaksOff(_Quiet):
    def copyfile(self, source: Any, outputfile: Any) -> None:
        outputfile.write(source.read()[:-1])


@contextmanager
def serve(folder: Path, *, breaks_off: bool = False) -> Iterator[str]:
    """The address under which a server on the loopback hands out the files of `folder`, perhaps short of a byte."""
    handler = partial(_BreaksOff if breaks_off else _Quiet, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
