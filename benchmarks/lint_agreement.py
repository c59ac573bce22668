"""Does `segdeploy lint` say what the real parsers say? Writes results/lint_agreement.json.

    .venv/bin/python benchmarks/lint_agreement.py [--tensorrt FOLDER] [--conformance] [--converted]

Asks TensorRT (FOLDER is made by tests/tensorrt_cpu/install.py), OpenVINO and ONNX Runtime about the
graphs of `lint_graphs.py` and about exports of ours: fp32, fp16, int8, both contracts, fixed and
dynamic sizes. `--conformance` adds the graphs of ONNX's own operator tests (1,884 in onnx 1.23), on
which the rules were found; they show how complete the tables are, not how well rules generalise.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from benchmarks.lint_graphs import make_graphs  # noqa: E402  programs beside this one
from benchmarks.lint_judges import JUDGES, SIZED  # noqa: E402
from segdeploy.graph.lint import lint_graph  # noqa: E402

RESULT = HERE / "results" / "lint_agreement.json"
CHECKPOINT = HERE / "checkpoints" / "unet-camvid"


@dataclass(frozen=True)
class Case:
    """One graph; `is_sized` gives its dynamic sizes a profile."""

    name: str
    model: onnx.ModelProto
    is_sized: bool = False

    @property
    def file(self) -> str:
        """Name of its file in the scratch folder."""
        return re.sub(r"[^\w]+", "_", self.name) + (SIZED if self.is_sized else ".onnx")


def made_cases() -> list[Case]:
    """Return the graphs made by hand, and the dynamic one with a profile as well."""
    graphs = make_graphs()
    twin = Case("dynamic size, with a profile", graphs["dynamic size"], is_sized=True)
    return [*(Case(name, model) for name, model in graphs.items()), twin]


def exported_cases(checkpoint: Path) -> list[Case]:
    """Return exports of one checkpoint in every precision and contract, of dynamic size."""
    from segdeploy.backends.onnx_export import export_checkpoint
    from segdeploy.core.contract import InputKind, IoContract, OutputKind
    from segdeploy.core.folder import load_folder
    from segdeploy.core.target import Precision
    from segdeploy.export.graphs import apply_contract, convert_precision
    from segdeploy.graph.fp16 import cast_to_fp16
    from segdeploy.graph.placement import place_qdq
    from segdeploy.graph.qdq import insert_qdq
    from segdeploy.graph.u8_activations import use_u8_activations

    folder = load_folder(checkpoint)
    name = folder.manifest.model
    plain = export_checkpoint(folder)
    ranges = _plain_ranges(place_qdq(plain).observed)
    int8 = insert_qdq(plain, place_qdq(plain), ranges)
    in_half, _ = convert_precision(plain, Precision.INT8, lambda: ranges, Precision.FP16)
    both = IoContract(InputKind.IMAGE, OutputKind.LABELS_CONFIDENCE)
    found = {
        "fp32": plain,
        "fp16": cast_to_fp16(plain),
        "int8 in fp16": in_half,
        "int8": int8,
        "int8 rewritten to uint8": use_u8_activations(int8),
        "image to labels": apply_contract(plain, both, folder.manifest),
        "fp16 image to labels": apply_contract(cast_to_fp16(plain), both, folder.manifest),
    }
    cases = [Case(f"{name} {kind}", model, is_sized=True) for kind, model in found.items()]
    return [*cases, Case(f"{name} fp32, without a profile", plain)]


def _plain_ranges(tensors: tuple[str, ...]) -> dict[str, Any]:
    """Return a range for each tensor: the verdict does not depend on which."""
    from segdeploy.graph.clipping import TensorRange

    return {tensor: TensorRange(4.0, 4.0, 0.0) for tensor in tensors}


def conformance_cases() -> list[Case]:
    """Return the graphs of ONNX's own operator tests."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [Case(c.name, c.model) for c in collect_testcases(None) if c.model is not None]


def converted_cases() -> list[Case]:
    """Return the graphs in the onnx package that other converters have exported."""
    root = Path(onnx.__file__).parent / "backend" / "test" / "data"
    files = sorted(root.glob("*/*/model.onnx"))
    return [Case(f"{f.parts[-3]} {f.parts[-2]}", onnx.load(f)) for f in files]


def compare(runtime: str, cases: list[Case], path: str = "") -> dict[str, Any]:
    """Return {version, rows}: for each graph what the runtime and the lint say."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for case in cases:
            (folder / case.file).write_bytes(case.model.SerializeToString())
        program = [sys.executable, str(HERE / "lint_judges.py"), runtime, str(folder)]
        environment = {**os.environ, **({"PYTHONPATH": path} if path else {})}
        made = subprocess.run(program, check=True, capture_output=True, text=True, env=environment)
        answer = json.loads(made.stdout.splitlines()[-1])
        rows = [_row(case, runtime, answer["verdicts"][case.file], folder) for case in cases]
    return {"version": answer["version"], "rows": rows}


def _row(case: Case, runtime: str, verdict: list[Any], folder: Path) -> dict[str, Any]:
    found = lint_graph(case.model, runtime, has_sizes=case.is_sized, folder=folder)
    rules = sorted({finding.rule for finding in found if finding.level == "error"})
    taken, reason = verdict
    return {
        "graph": case.name,
        "taken": taken,
        "rules": rules,
        "agrees": taken == (not rules),
        "reason": reason.replace(str(folder), "")[-160:],
    }


def summary(rows: list[dict[str, Any]], operators: dict[str, str]) -> dict[str, Any]:
    """Return counts, and what is left, of many rows."""
    missed = Counter(operators[r["graph"]] for r in rows if not r["agrees"] and not r["taken"])
    return {
        "graphs": len(rows),
        "refused": sum(not r["taken"] for r in rows),
        "agree": sum(r["agrees"] for r in rows),
        "false_alarms": [r["graph"] for r in rows if not r["agrees"] and r["taken"]],
        "missed_by_operator": dict(missed.most_common()),
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tensorrt", default="", help="folder of tests/tensorrt_cpu/install.py")
    parser.add_argument("--conformance", action="store_true")
    parser.add_argument("--converted", action="store_true")
    chosen = parser.parse_args(arguments)
    cases = made_cases() + exported_cases(CHECKPOINT)
    others = {
        "conformance": conformance_cases() if chosen.conformance else [],
        "converted": converted_cases() if chosen.converted else [],
    }
    before = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    results: dict[str, Any] = {}
    for runtime in JUDGES:
        if runtime == "tensorrt" and not chosen.tensorrt:
            continue
        path = chosen.tensorrt if runtime == "tensorrt" else ""
        results[runtime] = compare(runtime, cases, path)
        for kind, graphs in others.items():
            if graphs:
                operators = {case.name: _operators(case.model) for case in graphs}
                rows = compare(runtime, graphs, path)["rows"]
                results[runtime][kind] = summary(rows, operators)
            else:
                _keep(kind, results[runtime], before.get(runtime, {}))
        agree = sum(row["agrees"] for row in results[runtime]["rows"])
        print(f"{runtime} {results[runtime]['version']}: {agree} of {len(cases)} agree")
    RESULT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


def _keep(kind: str, result: dict[str, Any], before: dict[str, Any]) -> None:
    if before.get("version") == result["version"] and kind in before:
        result[kind] = before[kind]


def _operators(model: onnx.ModelProto) -> str:
    names = sorted({node.op_type for node in model.graph.node})
    return names[0] if len(names) == 1 else "several"


if __name__ == "__main__":
    main()
