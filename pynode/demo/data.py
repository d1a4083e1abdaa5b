"""Images of digits: scikit-learn's, or MNIST and its relatives as IDX files."""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pynode.errors import InputError, explain

_IMAGES, _LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
_FILES = (f"train-{_IMAGES}", f"train-{_LABELS}", f"t10k-{_IMAGES}", f"t10k-{_LABELS}")
#: Where torchvision puts them below its root, beside the folder itself.
_FOLDERS = ("", "raw", "MNIST/raw", "FashionMNIST/raw", "KMNIST/raw")


@dataclass(frozen=True)
class Dataset:
    """A data set for classification.

    Attributes
    ----------
    name : str
    train_images, test_images : Tensor
        float32 of shape (N, 1, height, width), shifted and scaled by the training images' mean and deviation.
    train_labels, test_labels : Tensor
        int64 of shape (N,), in 0 .. classes - 1.
    classes : int
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: int

    def limited(self, samples: int) -> Dataset:
        """The same test images with at most the first ``samples`` training images."""
        return replace(self, train_images=self.train_images[:samples], train_labels=self.train_labels[:samples])

    def to(self, device: torch.device) -> Dataset:
        """A copy on ``device``."""
        return replace(
            self,
            train_images=self.train_images.to(device),
            train_labels=self.train_labels.to(device),
            test_images=self.test_images.to(device),
            test_labels=self.test_labels.to(device),
        )


def load_digits() -> Dataset:
    """scikit-learn's 1 797 digits of 8 x 8 pixels: 1 297 for training, 500 for testing.

    The split is stratified and always the same, so that runs with different seeds are tested on the same images.
    """
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    images, labels = load(return_X_y=True)
    parts = train_test_split(images.reshape(-1, 8, 8), labels, test_size=500, stratify=labels, random_state=0)
    train_images, test_images, train_labels, test_labels = parts
    return _dataset("digits (8 x 8)", train_images, train_labels, test_images, test_labels)


def load_idx(directory: Path) -> Dataset:
    """MNIST, Fashion-MNIST or another data set of the same four IDX files, raw or gzipped.

    Parameters
    ----------
    directory : Path
        The folder of the files, or torchvision's root folder above ``MNIST/raw`` or ``FashionMNIST/raw``.

    Raises
    ------
    InputError
        If files are missing, damaged or do not fit together, or if the folder holds more than one data set.
    """
    folder = _find_folder(directory)
    paths = [_find_file(folder, name) for name in _FILES]
    train_images, train_labels, test_images, test_labels = (
        read_idx(path, dimensions=3 if _IMAGES in path.name else 1) for path in paths
    )
    for part, images, labels in (("train", train_images, train_labels), ("t10k", test_images, test_labels)):
        if len(images) != len(labels) or len(images) == 0:
            raise InputError(
                explain(
                    f"{part} has {len(images)} images and {len(labels)} labels in {folder}",
                    "as many labels as images, and at least one",
                    "take both files from the same download",
                )
            )
    name = next((part for part in reversed(folder.resolve().parts) if part != "raw"), "IDX files")
    height, width = train_images.shape[1:]
    if test_images.shape[1:] != (height, width):
        raise InputError(
            explain(
                f"training images are {height} x {width}, test images {' x '.join(map(str, test_images.shape[1:]))}",
                "one size",
                "take all four files from the same download",
            )
        )
    return _dataset(f"{name} ({height} x {width})", train_images, train_labels, test_images, test_labels)


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """An IDX file of unsigned bytes with that many dimensions; gzipped if its name ends in ``.gz``."""
    expectation = f"an IDX file of unsigned bytes with {dimensions} dimension(s)"
    remedy = "download the file again, or gunzip it if it is compressed under a name without .gz"
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(explain(f"{path} cannot be read ({error})", expectation, remedy)) from error
    magic, header = bytes((0, 0, 0x08, dimensions)), 4 + 4 * dimensions
    if content[:4] != magic or len(content) < header:
        raise InputError(
            explain(
                f"{path} has {len(content)} bytes, first {content[:4].hex(' ')}",
                f"{expectation}: {magic.hex(' ')} and {4 * dimensions} bytes of shape",
                remedy,
            )
        )
    shape = tuple(np.frombuffer(content, ">u4", count=dimensions, offset=4).tolist())
    body = len(content) - header
    if body != math.prod(shape):
        raise InputError(
            explain(f"{path} holds {body} bytes of data for the shape {shape}", f"{math.prod(shape)} bytes", remedy)
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _find_folder(directory: Path) -> Path:
    places = [directory / part for part in _FOLDERS]
    found = [place for place in places if all(_candidates(place, name) for name in _FILES)]
    if len(found) > 1:
        raise InputError(
            explain(
                f"--data {directory} holds several data sets: {', '.join(map(str, found))}", "one", "name one of them"
            )
        )
    if found:
        return found[0]
    # The folder that comes nearest tells best what is missing.
    nearest = max(places, key=lambda place: sum(bool(_candidates(place, name)) for name in _FILES))
    missing = [name for name in _FILES if not _candidates(nearest, name)]
    what = f"--data {directory}: no {', '.join(missing)} (with or without .gz) in {nearest}"
    if len(missing) == len(_FILES):
        what = f"--data {directory}: no IDX files in {', '.join(map(str, places))}"
        if not directory.is_dir():
            what = f"--data {directory} is not a directory"
    raise InputError(
        explain(
            what,
            f"the files {', '.join(_FILES)}, each raw or with .gz",
            "put the four files of MNIST or Fashion-MNIST there, or leave --data out for scikit-learn's digits",
        )
    )


def _candidates(folder: Path, name: str) -> list[Path]:
    return [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]


def _find_file(folder: Path, name: str) -> Path:
    return _candidates(folder, name)[0]


def _dataset(
    name: str, train_images: np.ndarray, train_labels: np.ndarray, test_images: np.ndarray, test_labels: np.ndarray
) -> Dataset:
    shift, scale = float(train_images.mean()), float(train_images.std())

    def images(pixels: np.ndarray) -> Tensor:
        return torch.from_numpy((pixels[:, None].astype(np.float32) - shift) / max(scale, 1e-12))

    return Dataset(
        name=name,
        train_images=images(train_images),
        train_labels=torch.from_numpy(train_labels.astype(np.int64)),
        test_images=images(test_images),
        test_labels=torch.from_numpy(test_labels.astype(np.int64)),
        classes=int(max(train_labels.max(), test_labels.max())) + 1,
    )
