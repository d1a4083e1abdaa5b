"""Death in hospital from 48 hours of intensive care, by a neural CDE (PhysioNet/CinC challenge 2012, set A).

4 000 stays; 37 quantities measured at irregular times, most of them rarely: about four in five hourly values are
missing. The path is linear between hourly means of what was measured, each channel through its own measurements, with
time and with the number of measurements so far of each channel (Kidger et al. 2020, section 4.3, on another data set).
What is known at admission is part of the initial state. 60 % of the stays are learned from, 20 % choose the epoch, 20 %
are tested. The comparison is a logistic regression on the mean, last, least and largest value and the count of each
quantity.

The data are one file, physionet2012-set-a.npz, with one row per measurement: patient, minute, parameter (an index into
parameters), value (-1: missing); and patient_ids, died; data.py finds it in --data or PYNODE_DATA. The challenge's own
score and test sets (B and C) are not used, so that figures do not compare with its.

    python examples/physionet.py --data DIR --quick
    python examples/physionet.py --data DIR
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from data import add_arguments, find_physionet
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor, nn

import pynode
from pynode.controls import Control, LinearControl, with_counts, with_time
from pynode.errors import InputError
from pynode.nn import MatrixField, NeuralCDE

HOURS = 48
STATIC = ("Age", "Gender", "Height", "ICUType")


def read(path: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Hourly means (N, 48, 37), NaN where nothing was measured; what is known at admission (N, 7); deaths (N,)."""
    data = np.load(path, allow_pickle=False)
    names = [str(name) for name in data["parameters"]]
    varying = [i for i, name in enumerate(names) if name not in (*STATIC, "RecordID")]
    row = np.searchsorted(data["patient_ids"], data["patient"])
    hour = np.minimum(data["minute"] // 60, HOURS - 1)
    parameter, value = data["parameter"], data["value"].astype(np.float64)
    good = value != -1
    shape = (len(data["patient_ids"]), HOURS, len(names))
    where = np.ravel_multi_index((row[good], hour[good], parameter[good]), shape)
    total = np.bincount(where, value[good], minlength=int(np.prod(shape))).reshape(shape)
    count = np.bincount(where, minlength=int(np.prod(shape))).reshape(shape)
    means = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    first = means[:, 0, [names.index(name) for name in STATIC]]
    unit = np.nan_to_num(first[:, 3:]) == np.arange(1, 5)  # the kind of intensive care unit, one of four
    static = np.concatenate([first[:, :3], unit], 1)
    return torch.from_numpy(means[:, :, varying]), torch.from_numpy(static), torch.from_numpy(data["died"].astype(int))


def standardised(x: Tensor, learn: Tensor) -> Tensor:
    """Each channel with mean 0 and deviation 1 over the stays learned from, outliers (units mixed up) cut at 4."""
    flat = x[learn].reshape(-1, x.shape[-1])
    mean = flat.nanmean(0)
    std = (flat - mean).pow(2).nanmean(0).sqrt().clamp(min=1e-6)
    return ((x - mean) / std).clamp(-4, 4)


def path(x: Tensor) -> Control:
    ts = torch.arange(HOURS) / 10.0
    channels = with_counts(x)
    channels[..., x.shape[-1] :] *= 0.1
    return LinearControl(ts, torch.cat([with_time(ts, x)[..., :1], channels], -1))


class Mortality(nn.Module):
    """Logit of death: a neural CDE whose initial state also sees what is known at admission."""

    def __init__(self, channels: int, static: int, hidden: int) -> None:
        super().__init__()
        self.admission = nn.Linear(channels + static, hidden)
        field = MatrixField(hidden, channels, width=16)
        self.cde = NeuralCDE(field, nn.Identity(), nn.Linear(hidden, 1), algorithm=pynode.Heun())

    def forward(self, control: Control, static: Tensor) -> Tensor:
        z0 = self.admission(torch.cat([control.start, static], -1))
        return self.cde(control, z0=z0).squeeze(-1)


def logits(model: Mortality, x: Tensor, static: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(path(a), b) for a, b in zip(x.split(256), static.split(256), strict=True)])


def summary(x: Tensor) -> np.ndarray:
    """Mean, last, least and largest value and count of each quantity: what the comparison sees."""
    seen = x.isnan().logical_not()
    last = torch.where(seen, torch.arange(HOURS).unsqueeze(-1), 0).amax(1, keepdim=True)
    parts = [x.nanmean(1), x.gather(1, last)[:, 0], *(s * (s * x).nan_to_num(-9.0).amax(1) for s in (1.0, -1.0))]
    parts = [torch.where(seen.any(1), part, 0.0) for part in parts]
    return torch.cat([*parts, seen.sum(1) / 10.0], 1).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1 000 stays, few epochs")
    add_arguments(parser)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=8)
    parser.add_argument("--plot", "--out", dest="out", type=Path, default=Path("physionet.png"))
    options = parser.parse_args()
    if options.quick:
        options.epochs = 5
    begun = time.perf_counter()
    try:
        found_at = find_physionet(options.data)
    except InputError as error:
        parser.error(str(error))
    raw, static, died = read(found_at)
    generator = torch.Generator().manual_seed(options.seed)
    torch.manual_seed(options.seed)
    order = torch.randperm(len(died), generator=generator)[: 1000 if options.quick else None]
    learn, choose, test = order.split(
        [int(0.6 * len(order)), int(0.2 * len(order)), len(order) - int(0.8 * len(order))]
    )
    x = standardised(raw, learn).float()
    static = standardised(static, learn).nan_to_num(0.0).float()
    missing = 100 * x[order].isnan().double().mean().item()
    print(f"pynode {pynode.__version__}; {len(order)} stays, {died[order].sum()} deaths")
    print(f"{missing:.0f} % of hourly values missing")
    model = Mortality(1 + 2 * x.shape[-1], static.shape[-1], options.hidden)
    print(f"{sum(p.numel() for p in model.parameters())} parameters")
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
    weight = (died[learn] == 0).sum() / died[learn].sum()
    best, kept, history = 0.0, None, []
    for epoch in range(options.epochs):
        total = 0.0
        for rows in learn[torch.randperm(len(learn))].split(options.batch):
            # Measurements dropped at random: the same stay, monitored less.
            seen = torch.where(torch.rand(x[rows].shape) < 0.3, torch.nan, x[rows])
            found = model(path(seen), static[rows])
            loss = nn.functional.binary_cross_entropy_with_logits(found, died[rows].float(), pos_weight=weight)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            total += loss.item() * len(rows)
        auc = roc_auc_score(died[choose], logits(model, x[choose], static[choose]))
        history.append((total / len(learn), auc))
        if auc > best:
            best, kept = auc, {name: value.clone() for name, value in model.state_dict().items()}
        print(
            f"  epoch {epoch + 1}/{options.epochs}: loss {total / len(learn):.3f}, AUC of the choosing set {auc:.3f}",
            flush=True,
        )
    assert kept is not None
    model.load_state_dict(kept)
    scores = {"neural CDE": logits(model, x[test], static[test]).numpy()}
    features = np.concatenate([summary(x), static.numpy()], 1)
    regression = LogisticRegression(C=0.01, max_iter=2000, class_weight="balanced").fit(features[learn], died[learn])
    scores["logistic regression"] = regression.decision_function(features[test])
    print(f"\narea under the ROC curve, {len(test)} stays that were not learned from, {int(died[test].sum())} deaths")
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for name, score in scores.items():
        auc = roc_auc_score(died[test], score)
        print(f"{name:20s} | {auc:.3f}")
        left.plot(*roc_curve(died[test], score)[:2], label=f"{name}: {auc:.3f}")
    left.plot([0, 1], [0, 1], "k:", lw=0.8)
    left.set(xlabel="false positives", ylabel="true positives", title="death in hospital")
    left.legend()
    right.plot([a for a, _ in history], label="loss")
    right.plot([b for _, b in history], label="AUC of the choosing set")
    right.set(xlabel="epoch")
    right.legend()
    figure.savefig(options.out, dpi=120, bbox_inches="tight")
    print(f"picture: {options.out}; {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
