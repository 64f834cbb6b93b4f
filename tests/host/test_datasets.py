"""Data sets from the files they are published as."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.random_pictures import SEED, split_of
from PIL import Image

from sentei.host.datasets import catalogue, dataset, idx


def idx_bytes(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.astype(np.uint8).tobytes()


def write_idx(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Test files are compressed, training files are not."""
    for name, values in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
        (folder / f"train-{name}").write_bytes(idx_bytes(values))
        (folder / f"t10k-{name}.gz").write_bytes(gzip.compress(idx_bytes(values)))


def write_cifar10(folder: Path, count: int = 2) -> np.ndarray:
    records = np.random.default_rng(SEED).integers(0, 256, (6, count, 3073), dtype=np.uint8)
    records[:, :, 0] = np.arange(6 * count).reshape(6, count) % 10
    for number, part in enumerate(records[:5]):
        part.tofile(folder / f"data_batch_{number + 1}.bin")
    records[5].tofile(folder / "test_batch.bin")
    return records


def test_cifar10_is_read_in_order(tmp_path):
    records = write_cifar10(tmp_path)
    loaded = catalogue.load("cifar10", tmp_path)
    assert loaded.classes[3] == "cat" and len(loaded.train) == 10 and len(loaded.test) == 2
    np.testing.assert_array_equal(loaded.train.labels, np.arange(10))
    np.testing.assert_array_equal(loaded.train.images[3, 1, 2], records[1, 1, 1 + 1024 + 64 :][:32])
    np.testing.assert_array_equal(loaded.test.images[1].ravel(), records[5, 1, 1:])


def test_idx_files_are_read_plain_and_compressed(tmp_path):
    images = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    write_idx(tmp_path, images, np.array([7, 9]))
    loaded = catalogue.load("mnist", tmp_path)
    for split in (loaded.train, loaded.test):
        np.testing.assert_array_equal(split.images, images[:, None])
        assert split.labels.tolist() == [7, 9] and split.labels.dtype == np.int64


def test_the_folder_is_the_argument_or_what_the_variable_names(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder, count in ((here, 1), (there, 2)):
        folder.mkdir()
        write_cifar10(folder, count)
    monkeypatch.setenv("SENTEI_CIFAR10", str(there))
    assert len(catalogue.load_split("cifar10", "test")) == 2
    assert len(catalogue.load_split("cifar10", "test", here)) == 1
    monkeypatch.delenv("SENTEI_CIFAR10")
    with pytest.raises(dataset.DatasetMissingError, match=r"no folder is named for cifar10: download .* set SENTEI_C"):
        catalogue.load_split("cifar10", "test")


@pytest.mark.parametrize(
    "kind, remedy",
    [
        (
            "cifar10",
            r"data_batch_1\.bin does not exist: download https://www\.cs\.toronto\.edu/.*; then name the folder, "
            "or set SENTEI_CIFAR10 to it",
        ),
        ("fashion-mnist", r"train-images-idx3-ubyte\.gz does not exist: install Debian's dataset-fashion-mnist"),
        ("mnist", r"train-images-idx3-ubyte\.gz does not exist: download the four"),
    ],
)
def test_missing_data_names_the_remedy(tmp_path, kind, remedy):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(dataset.DatasetMissingError, match=remedy):
            catalogue.load(kind, folder)


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(dataset.DatasetError, match=r"test_batch\.bin cannot be read: Not a directory"):
        catalogue.load_split("cifar10", "test", tmp_path / "file")


def test_unknown_data_and_unknown_splits_are_refused(tmp_path):
    with pytest.raises(dataset.DatasetError, match=r"must be one of cifar10, .* or a folder .*'cifar100'"):
        catalogue.load("cifar100", tmp_path)
    with pytest.raises(dataset.DatasetError, match="split must be 'train' or 'test', not 'validation'"):
        catalogue.load_split("mnist", "validation", tmp_path)


@pytest.mark.parametrize(
    "name, change, text",
    [
        (
            "data_batch_3.bin",
            lambda raw: raw[:-1],
            r"data_batch_3\.bin must hold records of 3073 bytes, not 6145 bytes",
        ),
        ("test_batch.bin", lambda raw: b"", r"test_batch\.bin must hold records of 3073 bytes, not 0 bytes; download"),
        (
            "data_batch_5.bin",
            lambda raw: b"\x0a" + raw[1:],
            "must hold labels from 0 to 9, not 10; download the binary",
        ),
    ],
)
def test_damaged_cifar10_is_refused(tmp_path, name, change, text):
    write_cifar10(tmp_path)
    (tmp_path / name).write_bytes(change((tmp_path / name).read_bytes()))
    with pytest.raises(dataset.DatasetFormatError, match=text):
        catalogue.load("cifar10", tmp_path)


@pytest.mark.parametrize(
    "content, text",
    [
        (b"", r"must start with 00 00 08 \(IDX, unsigned bytes\), not ''"),
        (bytes([0, 0, 13, 1, 0, 0, 0, 0]), "must start with 00 00 08 .* not '00 00 0d'"),
        (bytes([0, 0, 8, 2, 0, 0, 0, 1]), "ends inside its header; download it again"),
        (bytes([0, 0, 8, 1, 0, 0, 0, 5, 1, 2, 3]), r"must hold \(5,\) elements, not 3; download it again"),
        (bytes([0, 0, 8, 1, 0, 0, 0, 1, 1, 2]), r"must hold \(1,\) elements, not 2"),
    ],
)
def test_damaged_idx_files_are_refused(tmp_path, content, text):
    (tmp_path / "labels").write_bytes(content)
    with pytest.raises(dataset.DatasetFormatError, match=text):
        idx.load_idx(tmp_path / "labels")


def test_damaged_compressed_files_are_refused(tmp_path):
    whole = gzip.compress(idx_bytes(np.random.default_rng(SEED).integers(0, 256, (10, 9, 9))), mtime=0)
    reasons = set()
    for damaged in (whole[:-20], b"no gzip", whole[:10] + b"\xff" * 20 + whole[30:], whole[:60] + b"#" + whole[61:]):
        path = tmp_path / "images.gz"
        path.write_bytes(damaged)
        with pytest.raises(
            dataset.DatasetFormatError, match=r"images\.gz must be a complete gzip file, .*again"
        ) as info:
            idx.load_idx(path)
        reasons.add(type(info.value.__cause__))
    assert reasons == {EOFError, gzip.BadGzipFile, zlib.error}


@pytest.mark.parametrize(
    "images, labels, text",
    [
        (
            np.zeros((2, 3, 4)),
            np.zeros(3),
            r"must hold \(N, H, W\) images and \(N,\) labels, not \(2, 3, 4\) and \(3,\)",
        ),
        (np.zeros((2, 12)), np.zeros(2), r"must hold \(N, H, W\) images .* not \(2, 12\) and \(2,\)"),
        (np.zeros((2, 3, 4)), np.array([1, 10]), "must hold labels from 0 to 9, not 10"),
        (np.zeros((0, 3, 4)), np.zeros(0), "must hold labels from 0 to 9, not 0 among 0"),
    ],
)
def test_images_and_labels_that_do_not_fit_are_refused(tmp_path, images, labels, text):
    write_idx(tmp_path, images, labels)
    with pytest.raises(dataset.DatasetFormatError, match=text):
        catalogue.load("fashion-mnist", tmp_path)


@pytest.mark.parametrize(
    "change, text",
    [
        ({"images": lambda images: images / np.float32(255)}, r"images must be uint8 \(N, C, H, W\), .*, not float32"),
        ({"images": lambda images: images[:, 0]}, r"images must be uint8 \(N, C, H, W\), .*, not uint8 \(16, 8, 8\)"),
        ({"labels": lambda labels: labels.astype(float)}, r"labels must be int64 \(16,\), .*, not float64 \(16,\)"),
        ({"labels": lambda labels: labels[1:]}, r"labels must be int64 \(16,\), .*, not int64 \(15,\)"),
        ({"labels": lambda labels: labels + 1}, r"labels are 0 to 3, one for each class, not \[1, 2, 3, 4\]"),
    ],
)
def test_a_users_data_is_looked_at(change, text):
    split = split_of(16)
    with pytest.raises(dataset.DatasetError, match=text):
        changed = replace(split, **{name: function(getattr(split, name)) for name, function in change.items()})
        dataset.DataSet("mine", changed, split, tuple("abcd"))


# Folders of pictures


def fill(folder: Path, **counts: int) -> None:
    """Pictures of one grey each, another one in each picture of a class; a class of `counts` begins at a grey of its
    own."""
    for first, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (5 + number, 9), 60 * first + number).save(folder / name / f"{number:02}.png")


def greys(split: dataset.Split) -> list[tuple[int, int]]:
    """(grey, label) of each picture, all of whose pixels must be equal."""
    assert all(len(np.unique(image)) == 1 for image in split.images)
    return sorted(zip(split.images[:, 0, 0, 0].tolist(), split.labels.tolist(), strict=True))


def test_a_folder_of_pictures_is_a_data_set(tmp_path):
    fill(tmp_path / "pets", cat=11, dog=4)
    (tmp_path / "pets" / "cat" / "notes.txt").write_text("no picture")
    seen = []
    loaded = catalogue.load(str(tmp_path / "pets"), shape=(1, 6, 8), progress=lambda *done: seen.append(done))
    assert loaded.name == "pets" and loaded.classes == ("cat", "dog")
    assert loaded.train.images.shape == (11, 1, 6, 8) and loaded.test.images.shape == (4, 1, 6, 8)
    assert greys(loaded.test) == [(0, 0), (5, 0), (10, 0), (60, 1)], "every fifth of each class, by name"
    expected = [(n, 0) for n in range(11) if n % 5] + [(60 + n, 1) for n in (1, 2, 3)]
    assert greys(loaded.train) == expected
    assert loaded.train.labels.tolist() != sorted(loaded.train.labels.tolist()), "classes must be mixed"
    assert loaded.digest() == catalogue.load(str(tmp_path / "pets"), shape=(1, 6, 8)).digest()
    assert seen == [(n, 11) for n in range(1, 12)] + [(n, 4) for n in range(1, 5)]
    assert catalogue.load(str(tmp_path / "pets")).train.images.shape == (11, 3, 32, 32)


@pytest.mark.parametrize("name", ["test", "val"])
def test_a_folder_may_say_what_is_for_testing(tmp_path, name):
    fill(tmp_path / "train", cat=3, dog=2)
    fill(tmp_path / name, cat=1, dog=2)
    loaded = catalogue.load(str(tmp_path), shape=(1, 6, 8))
    assert greys(loaded.train) == [(0, 0), (1, 0), (2, 0), (60, 1), (61, 1)]
    assert greys(loaded.test) == [(0, 0), (60, 1), (61, 1)]


def test_folders_that_are_no_data_set_are_refused(tmp_path):
    def refused(kind: Path, text: str, **options) -> None:
        with pytest.raises(dataset.DatasetError, match=text):
            catalogue.load(str(kind), **options)

    fill(tmp_path / "one", cat=2)
    refused(tmp_path / "one", "one must hold a folder of pictures for each class, at least two, not cat")
    fill(tmp_path / "empty", cat=6, dog=0)
    refused(tmp_path / "empty", r"dog must hold pictures \(\.bmp, .*\), at least two")
    fill(tmp_path / "untested" / "train", cat=2, dog=2)
    refused(tmp_path / "untested", "none for testing: test/ is not there")
    fill(tmp_path / "untested" / "test", cat=2, fox=2)
    refused(tmp_path / "untested", "test must hold no classes but those to train on, not fox")
    fill(tmp_path / "damaged", cat=2, dog=2)
    (tmp_path / "damaged" / "dog" / "00.png").write_bytes(b"no picture")
    refused(tmp_path / "damaged", r"00\.png: is not a picture that can be read .*; mend it or take it away")
    refused(tmp_path / "one", "so no other folder .* can be named", folder=tmp_path)
