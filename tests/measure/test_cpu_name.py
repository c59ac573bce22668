"""Is the CPU named so that two generations under one name are told apart?"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from segdeploy.measure.environment import cpu_model, describe_environment
from segdeploy.measure.fingerprint import fingerprint_difference

EPYC = "vendor_id\t: AuthenticAMD\ncpu family\t: {}\nmodel\t\t: {}\nmodel name\t: AMD EPYC\n"
GRAVITON = "processor\t: 0\nBogoMIPS\t: 50\nCPU implementer\t: 0x41\nCPU part\t: {}\n"
BOARD = f"{GRAVITON.format('0xd08')}\nHardware\t: BCM2711\nModel\t\t: Raspberry Pi 4 Model B\n"


def named(tmp_path: Path, cpuinfo: str) -> str | None:
    file = tmp_path / "cpuinfo"
    file.write_text(cpuinfo)
    return cpu_model(file)


def test_two_generations_under_one_name_do_not_compare(tmp_path: Path) -> None:
    zen4, zen5 = (named(tmp_path, EPYC.format(*each)) for each in ((25, 17), (26, 2)))
    assert (zen4, zen5) == ("AMD EPYC (family 25, model 17)", "AMD EPYC (family 26, model 2)")
    here = describe_environment()
    (line,) = fingerprint_difference({**here, "cpu": zen4}, {**here, "cpu": zen5})
    assert line == f"cpu: {zen4} against {zen5}"


def test_arm_has_parts_and_boards_have_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for python_says in ("", "aarch64"):  # Debian and Ubuntu, on the same machine.
        monkeypatch.setattr("platform.processor", lambda said=python_says: said)
        assert named(tmp_path, GRAVITON.format("0xd40")) == "implementer 0x41, part 0xd40"
    assert named(tmp_path, BOARD) == "Raspberry Pi 4 Model B (implementer 0x41, part 0xd08)"


def test_of_mixed_cores_all_parts_are_told(tmp_path: Path) -> None:
    cores = [GRAVITON.format(part) for part in ("0xd08", "0xd03", "0xd03")]
    assert named(tmp_path, "\n".join(cores)) == "implementer 0x41, part 0xd03 0xd08"


def test_macos_tells_the_generation_in_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def answer(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command[1:])
        return subprocess.CompletedProcess(command, 0, stdout="Apple M2\n")

    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("platform.processor", lambda: "arm")
    monkeypatch.setattr("subprocess.run", answer)
    assert cpu_model(tmp_path / "absent") == "Apple M2"
    assert asked == [["-n", "machdep.cpu.brand_string"]]


def test_what_no_file_tells_is_what_python_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.processor", lambda: "Intel64 Family 6 Model 85 Stepping 7")
    assert cpu_model(tmp_path / "absent") == "Intel64 Family 6 Model 85 Stepping 7"  # Windows.
    monkeypatch.setattr("platform.processor", str)
    assert cpu_model(tmp_path / "absent") is None
