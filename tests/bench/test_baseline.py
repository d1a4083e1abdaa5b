"""``--check`` fails where a ratio regressed, on made-up ratios; the committed file is well formed."""

from __future__ import annotations

import json
import math

import pytest

from pynode.bench import Report, baseline, scaling
from pynode.bench.__main__ import EXPERIMENTS, main
from pynode.errors import InputError

HERE = {"machine": "x86_64 AVX2", "torch": "2.13.0", "cores": 2}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "baseline.json"
    baseline.update("peers", {"a": 0.4, "b": 2.0}, HERE, path)
    return path


@pytest.mark.parametrize(
    ("now", "failed"),
    [
        ({"a": 0.4, "b": 2.0}, False),
        ({"a": 0.1, "b": 2.49}, False),  # quicker, and within the tolerance of a quarter
        ({"a": 0.4, "b": 2.51}, True),
        ({"a": 0.51, "b": 2.0}, True),
        ({"a": 0.4, "b": math.nan}, True),
        ({"a": 0.4}, False),  # b's peer is not installed here
        ({"c": 0.1}, True),  # nothing to compare is no pass
    ],
)
def test_a_ratio_regresses_beyond_the_tolerance(file, now, failed):
    verdict = baseline.check("peers", now, HERE, file)
    assert verdict.failed is failed
    assert verdict.compared == len({"a", "b"} & set(now))
    assert verdict.only_there == [name for name in ("a", "b") if name not in now]
    assert verdict.elsewhere is None


def test_the_lines_name_what_regressed_and_another_machine(file):
    verdict = baseline.check("peers", {"a": 1.0, "c": 1.0}, {"machine": "arm64"}, file)
    text = "\n".join(verdict.lines())
    assert "REGRESSED: a: 1.000 of the peer's time, baseline 0.400 (tolerance 25%)" in text
    assert "x86_64 AVX2" in text
    assert "1 ratios of the baseline not measured here: b" in text


def test_sections_are_kept_apart(file):
    baseline.update("peers --quick", {"a": 0.9}, HERE, file)
    assert not baseline.check("peers", {"a": 0.4}, HERE, file).failed
    assert baseline.check("peers", {"a": 0.9}, HERE, file).failed
    assert not baseline.check("peers --quick", {"a": 0.9}, HERE, file).failed


def test_without_ratios_or_a_section_there_is_nothing_to_check(file, tmp_path):
    with pytest.raises(InputError, match="no ratios for 'gpu'"):
        baseline.check("gpu", {"a": 1.0}, HERE, file)
    with pytest.raises(InputError, match="there is no"):
        baseline.check("peers", {"a": 1.0}, HERE, tmp_path / "absent.json")
    with pytest.raises(InputError, match="gave no ratios"):
        baseline.update("peers", {}, HERE, file)


def test_the_command_checks_and_updates(tmp_path, monkeypatch, capsys):
    path = tmp_path / "own.json"
    ratios = {"a": 0.5}
    monkeypatch.setattr(scaling, "run", lambda options: Report([], [], ratios=dict(ratios)))
    flags = ["scaling", "--quick", "--baseline", str(path)]
    assert main([*flags, "--check"]) == 1
    assert "--update-baseline" in capsys.readouterr().err
    assert main([*flags, "--update-baseline"]) == 0
    assert json.loads(path.read_text())["sections"]["scaling --quick"]["ratios"] == ratios
    assert main([*flags, "--check"]) == 0
    ratios["a"] = 0.7
    assert main([*flags, "--check"]) == 1
    assert "REGRESSED: a" in capsys.readouterr().out


def test_the_committed_file():
    document = json.loads(baseline.PATH.read_text(encoding="utf-8"))
    assert document["tolerance"] == baseline.TOLERANCE
    for key, section in document["sections"].items():
        assert key.removesuffix(" --quick") in EXPERIMENTS
        assert section["ratios"]
        assert all(value > 0 for value in section["ratios"].values())
        assert section["environment"]["machine"]


def test_every_part_takes_the_common_options(capsys):
    for name in EXPERIMENTS:
        with pytest.raises(SystemExit) as ended:
            main([name, "--help"])
        assert ended.value.code == 0
        text = capsys.readouterr().out
        assert all(flag in text for flag in ("--json", "--check", "--update-baseline"))
