"""puna doctor: every fact has a state, what is missing has advice, and nothing on the machine can make it fail."""

import json
from pathlib import Path

import pytest

from puna import doctor
from puna.cli.main import main
from puna.plan.evidence.local_device import Calibration, device_here, write_calibration


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUNA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(doctor, "other_load", lambda: 0.0)


def calibrated(tflops: float, date: str) -> None:
    write_calibration(
        Calibration(device=device_here("cpu"), date=date, matmul_tflops=tflops, matmul_fp32_tflops=tflops)
    )


def test_says_everything_a_person_would_ask(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    names = {finding["name"] for finding in told["findings"]}
    assert names >= {"processor", "load", "instructions", "memory", "disk", "compiler", "sandbox", "calibration"}
    assert all(finding["state"] in ("ok", "note", "missing") for finding in told["findings"])
    assert all(finding["advice"] for finding in told["findings"] if finding["state"] == "missing")
    assert told["missing"] == [f["name"] for f in told["findings"] if f["state"] == "missing"]


def test_without_a_calibration_says_how_to_get_one() -> None:
    found = doctor.calibration()
    assert found.state == "missing"
    assert "puna plan calibrate" in found.advice


def test_an_old_calibration_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("puna.train.measure.calibrate.check_plausible", lambda *_: None)
    calibrated(0.1, "2025-01-01")
    found = doctor.calibration()
    assert found.state == "note"
    assert "days old" in found.found


def test_a_calibration_that_is_far_off_is_not_believed() -> None:
    calibrated(1e-6, "2026-11-01")
    found = doctor.calibration()
    assert found.state == "note"
    assert "times off" in found.found


def test_a_full_disk_and_a_missing_compiler_have_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("puna.train.measure.machine.has_compiler", lambda: False)
    assert "g++" in doctor.compiler().advice
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1 << 20})())
    assert doctor.disk().state == "note"


def test_load_of_other_programs_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "other_load", lambda: 400.0)
    found = doctor.load()
    assert found.state == "note"
    assert "400.0" in found.found
