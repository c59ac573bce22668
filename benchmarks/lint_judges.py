"""Ask a runtime itself about ONNX files: does it take the graph, and if not, why?

    python benchmarks/lint_judges.py tensorrt|openvino|onnxruntime FOLDER

prints one JSON document {name: [taken, reason]}. A program of its own, since TensorRT's Python API
needs its own PYTHONPATH (tests/tensorrt_cpu), and a parser may crash. TensorRT's verdict is that of
parser and builder together: what parses and cannot be built is refused. A graph with dynamic sizes
gets a profile only if its file name ends in `.sized.onnx`.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Verdict = tuple[bool, str]
SIZED = ".sized.onnx"
_LEAST, _USUAL, _LARGEST = 64, 96, 128


def ask_openvino() -> tuple[str, Callable[[Path], Verdict]]:
    openvino: Any = importlib.import_module("openvino")
    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": 1})

    def ask(path: Path) -> Verdict:
        try:
            core.compile_model(core.read_model(path), "CPU")
        except Exception as error:  # noqa: BLE001  a foreign parser raises anything
            return False, str(error)
        return True, ""

    return openvino.__version__, ask


def ask_onnxruntime() -> tuple[str, Callable[[Path], Verdict]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1

    def ask(path: Path) -> Verdict:
        try:
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001  a foreign parser raises anything
            return False, str(error)
        return True, ""

    return onnxruntime.__version__, ask


def ask_tensorrt() -> tuple[str, Callable[[Path], Verdict]]:
    tensorrt: Any = importlib.import_module("tensorrt")
    logger = tensorrt.Logger(tensorrt.Logger.INTERNAL_ERROR)
    builder = tensorrt.Builder(logger)

    def ask(path: Path) -> Verdict:
        network = builder.create_network(0)
        parser = tensorrt.OnnxParser(network, logger)
        if not parser.parse_from_file(str(path)):
            return False, "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        config = builder.create_builder_config()
        if path.name.endswith(SIZED):
            _add_profile(builder, config, network)
        is_built = builder.build_serialized_network(network, config) is not None
        return is_built, "" if is_built else "parsed, and could not be built"

    return tensorrt.__version__, ask


def _add_profile(builder: Any, config: Any, network: Any) -> None:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shapes = []
        for side in (_LEAST, _USUAL, _LARGEST):
            wanted = (1, *(side,) * (len(tensor.shape) - 1))
            shapes.append([w if s < 0 else s for s, w in zip(tensor.shape, wanted, strict=True)])
        if -1 in tuple(tensor.shape):
            profile.set_shape(tensor.name, *shapes)
    config.add_optimization_profile(profile)


JUDGES = {
    "tensorrt": ask_tensorrt, "openvino": ask_openvino, "onnxruntime": ask_onnxruntime,
}  # fmt: skip


def main() -> None:
    version, ask = JUDGES[sys.argv[1]]()
    found = {path.name: ask(path) for path in sorted(Path(sys.argv[2]).glob("*.onnx"))}
    print(json.dumps({"version": version, "verdicts": found}))


if __name__ == "__main__":
    main()
