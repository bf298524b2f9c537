"""What all tests share: two threads at most, no proxies, and tiny data sets in their real layout."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.archives import Archive, write_cifar10, write_image_folder, write_tiny_imagenet


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    # several test processes share the machine, and the nets are tiny
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _loopback_without_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="session")
def _cifar10(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return write_cifar10(tmp_path_factory.mktemp("cifar10"))


@pytest.fixture(scope="session")
def _tiny_imagenet(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return write_tiny_imagenet(tmp_path_factory.mktemp("tiny_imagenet"))


def _copy(archive: Archive, folder: Path) -> Archive:
    folder.mkdir()
    return Archive(Path(shutil.copy2(archive.path, folder)), archive.checksum)


@pytest.fixture
def cifar10(_cifar10: Archive, tmp_path: Path) -> Archive:
    """A CIFAR-10 archive of 100 training and 20 test images, this test's own."""
    return _copy(_cifar10, tmp_path / "cifar10")


@pytest.fixture
def tiny_imagenet(_tiny_imagenet: Archive, tmp_path: Path) -> Archive:
    """A Tiny ImageNet archive of 400 training and 200 test images, this test's own."""
    return _copy(_tiny_imagenet, tmp_path / "tiny_imagenet")


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """A folder of three class folders of ten images, this test's own."""
    return write_image_folder(tmp_path / "images")
