"""The demo's data: the digits, and IDX files in the places and forms people have them."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from pynode.demo.data import load_digits, load_idx, read_idx
from pynode.errors import InputError

pytest.importorskip("sklearn")


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_dataset(folder: Path, *, compress: bool = False, train: int = 12, test: int = 5) -> np.ndarray:
    """Four IDX files of random 6 x 7 images; returns the training images."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (train, 6, 7), np.uint8)
    parts = {
        "train-images-idx3-ubyte": images,
        "train-labels-idx1-ubyte": np.arange(train, dtype=np.uint8) % 10,
        "t10k-images-idx3-ubyte": random.integers(0, 256, (test, 6, 7), np.uint8),
        "t10k-labels-idx1-ubyte": np.arange(test, dtype=np.uint8) % 10,
    }
    for name, array in parts.items():
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))
    return images


def test_digits_are_split_the_same_way_every_time():
    first, second = load_digits(), load_digits()
    assert first.train_images.shape == (1297, 1, 8, 8)
    assert first.test_images.shape == (500, 1, 8, 8)
    assert first.train_images.dtype == torch.float32
    assert first.test_labels.dtype == torch.int64
    assert first.classes == 10
    assert torch.equal(first.test_images, second.test_images)
    assert first.train_images.mean().abs() < 1e-5
    assert abs(first.train_images.std().item() - 1) < 1e-3
    # Stratified: every class is tested.
    assert first.test_labels.bincount().min() >= 45


def test_no_test_image_is_trained_on():
    data = load_digits()
    seen = {tuple(image.flatten().tolist()) for image in data.train_images}
    assert sum(tuple(image.flatten().tolist()) in seen for image in data.test_images) == 0


def test_limited_takes_the_first_training_images_only():
    data = load_digits()
    small = data.limited(100)
    assert torch.equal(small.train_images, data.train_images[:100])
    assert len(small.train_labels) == 100
    assert len(small.test_images) == 500


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("place", ["", "raw", "MNIST/raw", "FashionMNIST/raw"])
def test_idx_files_are_found_raw_or_gzipped_wherever_torchvision_puts_them(tmp_path, place, compress):
    images = write_dataset(tmp_path / place, compress=compress)
    data = load_idx(tmp_path)
    assert data.train_images.shape == (12, 1, 6, 7)
    assert data.test_images.shape == (5, 1, 6, 7)
    expected = (torch.from_numpy(images.astype(np.float32)) - images.mean()) / images.std()
    torch.testing.assert_close(data.train_images[:, 0], expected, rtol=1e-5, atol=1e-5)
    assert data.train_labels.tolist() == [i % 10 for i in range(12)]
    if place.startswith("Fashion"):
        assert data.name == "FashionMNIST (6 x 7)"


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere is not a directory.*train-images-idx3-ubyte"):
        load_idx(tmp_path / "nowhere")


def test_an_empty_directory_names_the_places_that_were_searched(tmp_path):
    with pytest.raises(InputError, match=r"no IDX files in .*MNIST/raw"):
        load_idx(tmp_path)


def test_the_missing_files_are_named_with_their_folder(tmp_path):
    write_dataset(tmp_path / "MNIST" / "raw")
    (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match=r"no t10k-labels-idx1-ubyte \(with or without .gz\) in .*MNIST/raw"):
        load_idx(tmp_path)


def test_two_data_sets_in_one_folder_are_ambiguous(tmp_path):
    write_dataset(tmp_path / "MNIST" / "raw")
    write_dataset(tmp_path / "FashionMNIST" / "raw")
    with pytest.raises(InputError, match=r"several data sets.*name one of them"):
        load_idx(tmp_path)
    assert load_idx(tmp_path / "FashionMNIST").name == "FashionMNIST (6 x 7)"


def test_images_and_labels_must_be_as_many(tmp_path):
    write_dataset(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(7, np.uint8)))
    with pytest.raises(InputError, match="12 images and 7 labels"):
        load_idx(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has 0 bytes"),
        (b"<html>not here</html>", "first 3c 68 74 6d"),
        (idx(np.zeros((2, 3, 3), np.uint8))[:-1], "holds 17 bytes of data"),
        (idx(np.zeros((2, 3, 3), np.uint8))[:10], "has 10 bytes"),
        (idx(np.zeros(4, np.uint8)), "first 00 00 08 01"),
        (gzip.compress(idx(np.zeros((2, 3, 3), np.uint8))), "gunzip"),
    ],
    # The bytes themselves would be the names of the tests, and gzip writes the time of day into them.
    ids=["empty", "page", "cut_data", "cut_header", "labels", "compressed"],
)
def test_a_damaged_file_says_what_is_wrong(tmp_path, content, message):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_idx(path, dimensions=3)


def test_a_damaged_gzip_file_says_so(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(idx(np.zeros((2, 3, 3), np.uint8)))[:-9])
    with pytest.raises(InputError, match="cannot be read"):
        read_idx(path, dimensions=3)


def test_a_short_label_file_is_read(tmp_path):
    path = tmp_path / "train-labels-idx1-ubyte"
    path.write_bytes(idx(np.array([3, 1], np.uint8)))
    assert read_idx(path, dimensions=1).tolist() == [3, 1]
