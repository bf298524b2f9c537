import pickle
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import torchvision

from datamodules import CIFAR10, DataError
from datamodules.base import Split
from datamodules.cifar10 import read_batch
from datamodules.sampling import stratified_cut
from tests.archives import Archive, cifar10_files, md5, python2_pickle, serve, write_files, write_tar

FILES = cifar10_files()


class ByHand(CIFAR10):
    """Knows the checksums of the files that the tests make."""

    files: ClassVar[dict[Split, dict[str, str]]] = {
        "train": {f"data_batch_{n}": md5(FILES[f"data_batch_{n}"]) for n in range(1, 6)},
        "test": {"test_batch": md5(FILES["test_batch"])},
    }


def by_hand(root: Path) -> Path:
    """The unpacked files, and their folder."""
    return write_files(root / "cifar-10-batches-py", FILES)


def images(data: CIFAR10, stage: str) -> torch.Tensor:
    data.prepare_data()
    data.setup(stage)
    loader = data.test_dataloader() if stage == "test" else data.train_dataloader()
    batches = list(loader)
    order = torch.cat([batch.indices for batch in batches]).argsort()
    return torch.cat([batch.images for batch in batches])[order]


def test_the_facts_are_those_of_torchvision() -> None:
    theirs = torchvision.datasets.CIFAR10
    assert CIFAR10.files["train"] == dict(theirs.train_list)
    assert CIFAR10.files["test"] == dict(theirs.test_list)
    assert CIFAR10().checksum == theirs.tgz_md5
    assert theirs.url == CIFAR10.official + theirs.filename


def test_images_and_labels_are_those_that_torchvision_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_hand(tmp_path)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    # their unpickling of NumPy's old names warns
    monkeypatch.setattr("warnings.warn", lambda *args, **options: None)
    data = ByHand(root=tmp_path, val_fraction=0.0)
    data.setup(None)
    for split, train in (("train", True), ("test", False)):
        theirs = torchvision.datasets.CIFAR10(tmp_path, train=train)
        ours = data.read(split)  # type: ignore[arg-type]
        assert ours is not None
        assert (ours.fetch(torch.arange(len(ours))).permute(0, 2, 3, 1).numpy() == theirs.data).all()
        assert ours.labels.tolist() == theirs.targets


def test_the_archive_and_its_unpacked_files_read_alike(cifar10: Archive, tmp_path: Path) -> None:
    by_hand(tmp_path)
    for stage in ("fit", "test"):
        assert images(CIFAR10(**cifar10.init_args), stage).equal(images(ByHand(root=tmp_path), stage))


def test_it_is_downloaded_once_and_decoded_once(cifar10: Archive, tmp_path: Path) -> None:
    root = tmp_path / "data"
    with serve(cifar10.folder) as address:
        first = images(CIFAR10(root=root, checksum=cifar10.checksum, mirror=address), "fit")
    assert images(CIFAR10(root=root, checksum=cifar10.checksum, mirror="http://127.0.0.1:9/"), "fit").equal(first)
    assert len(list((root / "cache").iterdir())) == 1
    assert sorted(path.name for path in root.iterdir()) == ["cache", "cifar-10-python.tar.gz"]


@pytest.mark.parametrize("fault", ["checksum", "truncated", "unreachable", "missing"])
def test_a_failed_download_leaves_nothing_and_says_what_to_do(fault: str, cifar10: Archive, tmp_path: Path) -> None:
    root = tmp_path / "data"
    served = cifar10.folder if fault != "missing" else tmp_path
    with serve(served, breaks_off=fault == "truncated") as address:
        if fault != "unreachable":
            checksum = "0" * 32 if fault == "checksum" else cifar10.checksum
            with pytest.raises(DataError) as caught:
                CIFAR10(root=root, checksum=checksum, mirror=address).prepare_data()
    if fault == "unreachable":
        with pytest.raises(DataError) as caught:
            CIFAR10(root=root, checksum=cifar10.checksum, mirror=address).prepare_data()
    lines = str(caught.value).splitlines()
    assert len(lines) <= 4
    assert "cifar-10-python.tar.gz" in lines[0]
    assert "experiments/overlays/digits.yaml" in lines[-1]
    assert not root.exists()


def test_without_files_setup_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"experiments/overlays/digits\.yaml") as caught:
        CIFAR10(root=tmp_path).setup("fit")
    assert len(str(caught.value).splitlines()) <= 4


def test_fitting_never_reads_the_test_batch(tmp_path: Path) -> None:
    folder = by_hand(tmp_path)
    (folder / "test_batch").write_bytes(b"poison")
    data = ByHand(root=tmp_path)
    assert len(images(data, "fit")) == 90
    with pytest.raises(DataError, match="test_batch is damaged or another file"):
        data.setup("test")


def test_a_changed_file_is_noticed_behind_the_cache(tmp_path: Path) -> None:
    folder = by_hand(tmp_path)
    images(ByHand(root=tmp_path), "fit")
    (folder / "data_batch_3").write_bytes(FILES["data_batch_4"])
    with pytest.raises(DataError, match="data_batch_3 is damaged or another file"):
        ByHand(root=tmp_path).setup("fit")


def test_files_of_another_checksum_are_never_unpickled(tmp_path: Path) -> None:
    by_hand(tmp_path)
    with pytest.raises(DataError, match="data_batch_1 is damaged or another file"):
        CIFAR10(root=tmp_path).setup("fit")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (by_hand(tmp_path) / "data_batch_5").unlink()
    with pytest.raises(DataError, match="data_batch_5 is missing"):
        ByHand(root=tmp_path).setup("fit")


def test_the_validation_split_stays_what_it_is() -> None:
    # of the real labels' order nothing is known here; this is their number, ten classes in turn
    labels = torch.arange(50_000) % 10
    _, val = stratified_cut(labels, torch.arange(50_000), 0.1, seed=0, stream="validation")
    assert labels[val].bincount().tolist() == [500] * 10
    assert md5(val.numpy().astype("<i8").tobytes()) == "b158bd312c90145fa6da3d8cf22ffbf5"


class _Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("owned",)


IMAGES = np.zeros((2, 3072), dtype=np.uint8)


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps(_Hostile()),
        pickle.dumps({b"data": _Hostile(), b"labels": [0, 1]}),
        python2_pickle({b"data": IMAGES}),
        python2_pickle({b"data": IMAGES, b"labels": [0]}),
        python2_pickle({b"data": IMAGES, b"labels": [0, 10]}),
        python2_pickle({b"data": IMAGES, b"labels": [0, -1]}),
        python2_pickle({b"data": IMAGES[:, :5].copy(), b"labels": [0, 1]}),
        python2_pickle({b"data": IMAGES.astype(np.float32), b"labels": [0, 1]}),
        python2_pickle([1, 2]),
        b"",
        b"\x80\x02",
    ],
)
def test_a_batch_that_holds_anything_else_is_refused(data: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="batch_9 cannot be read") as caught:
        read_batch(data, "batch_9")
    assert "\n" not in str(caught.value)
    assert "owned" not in capsys.readouterr().out


def test_a_batch_of_a_new_python_is_read_too() -> None:
    images, labels = read_batch(pickle.dumps({b"data": IMAGES, b"labels": [3, 4]}), "batch_9")
    assert images.shape == (2, 3, 32, 32)
    assert labels.tolist() == [3, 4]


def test_an_archive_with_a_link_is_refused(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "cifar-10-python.tar.gz", {"../data_batch_1": b""})
    with pytest.raises(DataError, match="not to be trusted"):
        CIFAR10(root=tmp_path, checksum=archive.checksum).setup("fit")
