import hashlib
import io
import socket
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamodules.download import download, read_tar, verify, zip_members
from datamodules.errors import DataError
from datamodules.images import ZipStore
from tests.archives import md5, serve, write_files, write_tar, write_zip

DATA = bytes(range(256)) * 5000
LARGE = 1_000_000


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_files(tmp_path / "server", {"bees.zip": DATA})


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("checksum", [md5(DATA), hashlib.sha256(DATA).hexdigest()], ids=["md5", "sha256"])
def test_the_right_file_arrives(source: Path, tmp_path: Path, checksum: str) -> None:
    target = tmp_path / "data" / "bees.zip"
    with serve(source) as address:
        download(address + "bees.zip", target, checksum, len(DATA))
    assert target.read_bytes() == DATA
    assert left(target.parent) == ["bees.zip"]


def test_a_wrong_checksum_leaves_nothing(source: Path, tmp_path: Path) -> None:
    with serve(source) as address, pytest.raises(DataError, match="is another file: its checksum is"):
        download(address + "bees.zip", tmp_path / "data" / "bees.zip", "0" * 32, len(DATA))
    assert left(tmp_path / "data") == []


def test_a_transfer_that_breaks_off_leaves_nothing(source: Path, tmp_path: Path) -> None:
    with serve(source, breaks_off=True) as address, pytest.raises(DataError, match="broke off after"):
        download(address + "bees.zip", tmp_path / "data" / "bees.zip", md5(DATA), len(DATA))
    assert left(tmp_path / "data") == []


def test_a_file_larger_than_expected_is_refused(source: Path, tmp_path: Path) -> None:
    with serve(source) as address, pytest.raises(DataError, match="larger than the 1,000 bytes"):
        download(address + "bees.zip", tmp_path / "data" / "bees.zip", md5(DATA), 1000)
    assert left(tmp_path / "data") == []


def test_a_missing_file_and_an_unreachable_server_are_said_in_one_line(source: Path, tmp_path: Path) -> None:
    with serve(source) as address, pytest.raises(DataError, match=r"cannot download .*wasps\.zip: HTTP Error 404"):
        download(address + "wasps.zip", tmp_path / "data" / "bees.zip", md5(DATA), 1000)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/bees.zip"
    with pytest.raises(DataError, match=r"cannot download .*refused") as caught:
        download(nobody, tmp_path / "data" / "bees.zip", md5(DATA), 1000)
    assert "\n" not in str(caught.value)
    assert left(tmp_path / "data") == []


def test_an_old_file_stays_where_a_new_one_fails(source: Path, tmp_path: Path) -> None:
    target = write_files(tmp_path / "data", {"bees.zip": b"old"}) / "bees.zip"
    with serve(source) as address, pytest.raises(DataError):
        download(address + "bees.zip", target, "0" * 32, len(DATA))
    assert target.read_bytes() == b"old"


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ftp://host/bees.zip", "bees.zip"])
def test_only_the_web_is_an_address(address: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must begin with http"):
        download(address, tmp_path / "bees.zip", md5(DATA), 1000)


@pytest.mark.parametrize("checksum", ["", "abc", "A" * 32, "0" * 40])
def test_a_checksum_of_no_known_kind_is_refused(checksum: str, source: Path) -> None:
    with pytest.raises(ValueError, match="checksum must be"):
        verify(source / "bees.zip", checksum)


def test_a_damaged_file_is_told_from_the_right_one(source: Path) -> None:
    verify(source / "bees.zip", md5(DATA))
    (source / "bees.zip").write_bytes(DATA[:-1])
    with pytest.raises(DataError, match="is damaged or another file"):
        verify(source / "bees.zip", md5(DATA))


def test_members_are_found_by_name(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar.gz", {"bees/one": b"1", "bees/two": b"2"}).path
    assert read_tar(archive, {"two"}, 10, LARGE) == {"two": b"2"}
    with pytest.raises(DataError, match="lacks three"):
        read_tar(archive, {"one", "three"}, 10, LARGE)
    assert list(zip_members(write_zip(tmp_path / "a.zip", {"bees/one": b"1"}).path, 10, LARGE)) == ["bees/one"]


OUTSIDE = ["../one", "bees/../../one", "/etc/one", "C:\\one", "..\\one"]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_archives_that_lead_out_of_their_folder_are_refused(name: str, kind: str, tmp_path: Path) -> None:
    read: Callable[[], object]
    if kind == "tar":
        archive = write_tar(tmp_path / "a.tar.gz", {name: b"1"}).path
        read = lambda: read_tar(archive, {"one"}, 10, LARGE)  # noqa: E731
    else:
        archive = write_zip(tmp_path / "a.zip", {name: b"1"}).path
        read = lambda: zip_members(archive, 10, LARGE)  # noqa: E731
    with pytest.raises(DataError, match="not to be trusted"):
        read()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(kind: bytes, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo("bees/one")
        member.type = kind
        member.linkname = "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(DataError, match="a link or device"):
        read_tar(tmp_path / "a.tar.gz", {"one"}, 10, LARGE)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        link = zipfile.ZipInfo("bees/one")
        link.create_system = 3
        link.external_attr = 0o120777 << 16
        file.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="a link"):
        zip_members(tmp_path / "a.zip", 10, LARGE)


def test_members_too_large_and_damaged_archives_are_refused(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar.gz", {"bees/one": bytes(100)}).path
    with pytest.raises(DataError, match="has 100 bytes"):
        read_tar(tar, {"one"}, 10, LARGE)
    with pytest.raises(DataError, match="has 100 bytes"):
        zip_members(write_zip(tmp_path / "a.zip", {"bees/one": bytes(100)}).path, 10, LARGE)
    for name in ("a.tar.gz", "a.zip"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:40])
    with pytest.raises(DataError, match="cannot read"):
        read_tar(tar, {"one"}, 1000, LARGE)
    with pytest.raises(DataError, match="cannot read"):
        zip_members(tmp_path / "a.zip", 1000, LARGE)


def test_a_tar_of_noise_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(io.BytesIO(DATA).read())
    with pytest.raises(DataError, match="cannot read"):
        read_tar(tmp_path / "a.tar.gz", {"one"}, 1000, LARGE)


def test_folders_that_were_made_for_nothing_go_again_and_others_stay(source: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    with serve(source) as address, pytest.raises(DataError):
        download(address + "bees.zip", tmp_path / "kept" / "new" / "data" / "bees.zip", "0" * 32, len(DATA))
    assert left(tmp_path / "kept") == []


@pytest.mark.parametrize("unwanted", ["member", "header"])
def test_a_tar_that_unpacks_to_a_thousandfold_is_refused_before_it_is_unpacked(unwanted: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("bees/none")
        if unwanted == "header":
            member.pax_headers = {"comment": "x" * 9_000_000}
        else:
            member.size = 9_000_000
        tar.addfile(member, io.BytesIO(bytes(member.size)))
    assert path.stat().st_size * 500 < 9_000_000
    tracemalloc.start()
    with pytest.raises(DataError, match="unpacks to more than 1,000,000 bytes"):
        read_tar(path, {"one"}, 1000, LARGE)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_a_zip_that_unpacks_to_a_thousandfold_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for number in range(30):
            file.writestr(f"bees/{number}", bytes(100_000))
    assert (tmp_path / "a.zip").stat().st_size * 200 < 3_000_000
    with pytest.raises(DataError, match="unpacks to more than 1,000,000 bytes"):
        zip_members(tmp_path / "a.zip", 100_000, LARGE)


def test_a_zip_whose_sizes_lie_is_not_unpacked_beyond_them(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bees/one", bytes(20_000_000))
    path.write_bytes(path.read_bytes().replace((20_000_000).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    assert zip_members(path, 1000, LARGE)["bees/one"].file_size == 100
    tracemalloc.start()
    with pytest.raises(DataError, match="bees/one"):
        ZipStore(path).read("bees/one")
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["tar", "zip"]),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    kept=st.floats(0, 1),
)
def test_a_damaged_archive_is_read_or_refused_in_one_line(
    kind: str, changes: list[tuple[float, int]], kept: float, tmp_path: Path
) -> None:
    write = write_tar if kind == "tar" else write_zip
    path = tmp_path / kind
    data = bytearray(write(path, {"bees/one": b"1" * 50, "bees/two": b"2" * 500}).path.read_bytes())
    for place, value in changes:
        data[int(place * len(data))] = value
    path.write_bytes(data[: round(kept * len(data))] if kept < 0.9 else data)
    told = str(path)
    try:
        if kind == "tar":
            read_tar(path, {"one"}, 100, 10_000)
        else:
            for name in zip_members(path, 1000, 10_000):
                ZipStore(path).read(name)
    except DataError as error:
        told = str(error)
    assert str(path) in told
    assert len(told.splitlines()) == 1
