"""`sentei doctor`: everything is looked for, and what is missing is named with its remedy for the commands that need
it."""

import json
import os
import sys
from importlib import metadata

import pytest

pytest.importorskip("typer")

from helpers.tiers import hardware

from sentei.host.apps import doctor
from sentei.host.commands import cli


@pytest.fixture
def told(monkeypatch, capsys, tmp_path):
    """told(): what `sentei doctor` prints, and its figures."""

    def call():
        monkeypatch.setattr(sys, "argv", ["sentei", "doctor", "--json", str(tmp_path / "doctor.json")])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        return capsys.readouterr().out, json.loads((tmp_path / "doctor.json").read_text())

    return call


@hardware  # tries every program
def test_a_machine_that_runs_these_tests_is_ready_for_the_simulator(told):
    text, figures = told()
    assert figures["commands"]["run, verify, bench, serve"] == []
    assert "run, verify, bench, serve: ready" in text
    found = {(finding["kind"], finding["name"]): finding["found"] for finding in figures["found"]}
    assert found["package", "numpy" if ("package", "numpy") in found else "onnx"]
    assert found["package", "litex"] == metadata.version("litex")
    assert os.access(found["program", "g++"], os.X_OK)
    assert figures["system"]["sentei"] == metadata.version("sentei")


@hardware
def test_a_program_that_is_missing_is_named_for_the_commands_that_need_it(told, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    text, figures = told()
    assert "g++" in figures["commands"]["demo"] and "g++" not in figures["commands"]["compile, info, pack"]
    assert "  program g++ is not installed: sudo apt-get install g++\n" in text
    assert "demo: not ready" in text


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch):
    def version(name):
        if name == "onnx":
            raise metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(doctor.metadata, "version", version)
    monkeypatch.setattr(doctor, "programs", list)
    report = doctor.examine()
    (finding,) = report.commands()["compile, info, pack"]
    assert (finding.name, finding.wrong) == ("onnx", "is not installed; it is for the compiler and the command line")
    assert finding.remedy == "make setup, or pip install 'sentei[host]'"
    assert "onnx" in report.to_dict()["commands"]["train, curve"]


def test_without_the_gateware_that_is_said(monkeypatch):
    monkeypatch.setattr(doctor.sys, "executable", "/bin/false")
    (finding,) = doctor.programs()
    assert finding.wrong == "cannot be asked: nothing is said" and finding.remedy == "make setup"


def test_data_sets_and_simulators_are_found_where_they_are(monkeypatch, tmp_path):
    monkeypatch.setenv("SENTEI_CIFAR10", str(tmp_path))
    monkeypatch.setenv("SENTEI_MNIST", str(tmp_path / "nowhere"))
    found = {finding.name: finding for finding in doctor.data_sets()}
    assert found["cifar10"].found == str(tmp_path) and not found["cifar10"].wrong
    assert found["mnist"].wrong == "is not there" and "then set SENTEI_MNIST" in found["mnist"].remedy
    (tmp_path / "8x8-zynq-hp").mkdir()
    (tmp_path / "8x8-zynq-hp" / "manifest.json").write_text("{}")
    assert [finding.name for finding in doctor.simulators(tmp_path)] == ["8x8-zynq-hp"]


@pytest.mark.parametrize(
    ("marker", "true"),
    [
        ('extra == "sim"', True),
        ('python_version < "3.0" and extra == "sim"', False),
        ('python_version >= "3.10" and extra == "sim"', True),
        ('python_version > "99" and extra == "sim"', False),
    ],
)
def test_requirements_of_other_pythons_are_not_missed(marker, true):
    assert doctor.holds(marker) is true
