"""Seconds as a function of rows and lengths, and who uses them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from cascadebert import Cascade, MinAgreement, Rows, machine
from cascadebert.errors import CascadeWarning, InputError
from cascadebert.machine import machine_name, usable_cores
from cascadebert.stages.speed import _non_negative_fit
from conftest import CORPUS, Make

TEXTS = [f"{line} {i}" for i in range(20) for line in CORPUS]


def test_the_fit_finds_the_coefficients_of_exact_seconds() -> None:
    lengths = np.array([4.0, 8, 16, 32, 64, 128])
    sums = 50 * np.vander(lengths, 3, increasing=True)
    for expected in ([1e-4, 2e-5, 3e-8], [0.0, 2e-5, 0.0], [1e-3, 0.0, 0.0]):
        found = _non_negative_fit(sums, sums @ expected)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-15)
    noise = np.random.default_rng(0).uniform(0.8, 1.2, len(lengths))
    assert (_non_negative_fit(sums, sums @ [1e-4, 0, 0] * noise) >= 0).all()


def test_speed_is_saved_and_makes_the_costs_of_tuning(make: Make, tmp_path: Path) -> None:
    cascade = Cascade.from_stages([make("small"), make("large", seed=1)])
    before = cascade.fingerprint
    cascade.measure_speed(TEXTS)
    assert cascade.fingerprint == before
    again = Cascade.from_pretrained(cascade.save_pretrained(tmp_path / "cascade"))
    speeds = [stage.speed for stage in again.stages]
    assert speeds == [stage.speed for stage in cascade.stages]
    assert all(speed and speed.machine == machine_name() for speed in speeds)
    again.tune(Rows(TEXTS), MinAgreement(0.5), confidence=None)
    cost = again.record.cost
    assert cost is not None
    assert cost["machine"] == machine_name()
    expected = [
        stage.speed.row_seconds(stage.tokenize(Rows(TEXTS)).lengths).mean()
        for stage in again.stages
        if stage.speed
    ]
    np.testing.assert_allclose(cost["per_row"], expected)
    # Nothing is known of another runtime.
    assert Cascade.from_pretrained(tmp_path / "cascade", runtime="openvino").stages[0].speed is None


def test_seconds_of_another_machine_are_used_and_told_of(make: Make) -> None:
    cascade = Cascade.from_stages([make("small"), make("large", seed=1)])
    cascade.measure_speed(TEXTS)
    stages = []
    for stage in cascade.stages:
        assert stage.speed
        stages.append(stage.with_speed(dataclasses.replace(stage.speed, machine="a mainframe")))
    cascade = cascade.with_own_stages(stages)
    with pytest.warns(CascadeWarning, match=r"another machine \(a mainframe\) than this one"):
        cascade.tune(Rows(TEXTS), MinAgreement(0.5), confidence=None)


def test_no_rows_to_time(cascade: Cascade) -> None:
    with pytest.raises(InputError, match="no rows to time the stages on"):
        cascade.measure_speed([])


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "20000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_cores_are_those_of_the_container(
    files: dict[str, str], cores: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(machine, "_CGROUP", tmp_path / "nowhere")
    usable_cores.cache_clear()
    bound = usable_cores()
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    usable_cores.cache_clear()
    assert usable_cores() == (cores or bound)
    usable_cores.cache_clear()
