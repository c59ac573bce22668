"""When are two results comparable? One change of the environment at a time."""

from __future__ import annotations

import json
from typing import Any

import pytest

from segdeploy.measure.environment import describe_environment
from segdeploy.measure.fingerprint import fingerprint, fingerprint_difference, os_family


def environment(**changed: Any) -> dict[str, Any]:
    return {
        "cpu": "A", "cpu_flags": ["avx2"], "num_cores": 2, "affinity": [0, 1],
        "cpu_limit_cores": None, "governor": None, "machine": "x86_64", "threads": 2,
        "device": "cpu", "os": "Linux-6.8.0-45-generic-x86_64-with-glibc2.39",
        "gpus": [{"name": "G", "driver": "550.1", "memory_mib": 1.0}],
        "variables": {"OMP_NUM_THREADS": "2", "SEGDEPLOY_PYTHON_LITERT": "/x"},
        "runtime": {"versions": {"onnxruntime": "1.20", "numpy": "2"}},
        "load_average": [0.1], "frequency_mhz": 3000.0, **changed,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"cpu": "B"}, "cpu"), ({"cpu_flags": ["avx2", "amx_int8"]}, "cpu_flags"),
        ({"num_cores": 4}, "num_cores"), ({"affinity": [0]}, "affinity"),
        ({"cpu_limit_cores": 1.5}, "cpu_limit_cores"), ({"threads": 1}, "threads"),
        ({"os": "Linux-5.15.0-1-generic"}, "os"), ({"governor": "powersave"}, "governor"),
        ({"gpus": [{"name": "H", "driver": "550.1"}]}, "gpus"),
        ({"gpus": [{"name": "G", "driver": "560.2"}]}, "drivers"),
        ({"variables": {"MALLOC_TRIM_THRESHOLD_": "0"}}, "variables"),
        ({"runtime": {"versions": {"onnxruntime": "1.21"}}}, "runtimes"),
    ],
)  # fmt: skip
def test_each_thing_that_matters_is_a_difference(changed: dict[str, Any], word: str) -> None:
    (line,) = fingerprint_difference(environment(), environment(**changed))
    assert line.startswith(f"{word}: ")


@pytest.mark.parametrize(
    "changed",
    [
        {"load_average": [9.0], "frequency_mhz": 900.0},
        {"os": "Linux-6.8.0-50-generic-x86_64-with-glibc2.39"},
        {"variables": {"OMP_NUM_THREADS": "1", "SEGDEPLOY_PYTHON_LITERT": "/y"}},
        {"runtime": {"versions": {"openvino": "2026.4"}}},
        {"runtime": {}},
        {"affinity": (0, 1)},
    ],
)
def test_what_changes_by_the_minute_is_none(changed: dict[str, Any]) -> None:
    assert fingerprint_difference(environment(), environment(**changed)) == []


def test_a_machine_is_comparable_with_itself_after_a_round_trip() -> None:
    here = describe_environment()
    assert fingerprint_difference(here, json.loads(json.dumps(here))) == []
    assert fingerprint(here)["cpu"] == here["cpu"]


def test_an_unknown_value_is_unlike_a_known_one() -> None:
    (line,) = fingerprint_difference(environment(cpu=None), environment())
    assert line == "cpu: unknown against A"


def test_the_kernel_series_counts() -> None:
    assert os_family("Linux-6.8.0-45-generic") == "Linux-6.8"
    assert os_family("macOS-14.5-arm64-arm-64bit") == "macOS-14.5"
    assert os_family(None) is None
