"""ncnn: a traced module, converted by pnnx, for phones and boards; fp32 and fp16.

Precision has two halves here. The weights in `model.ncnn.bin` are fp16 or fp32 as pnnx is told
(fp16 is its own default), and what layers compute in follows from options that the application
sets; ncnn's defaults hold activations in fp16 wherever the CPU can. So both are set, for fp32 all
fp16 and bf16 switches to off. For fp16 they are on: a CPU with fp16 arithmetic (Armv8.2) computes
in it; x86 has none, reads fp16 weights and computes in fp32. bf16 is always off: on x86 it would be
taken in place of fp16.

pnnx ends with success, and writes a file, where it could not convert a layer, so each payload is
loaded and run once before it is kept. It can leave sizes open, but only where a module does not
compute with them (unet's padding becomes layers that ncnn does not have), so one size is offered.
ncnn takes one image at a time, knows no uint8 input and no argmax over channels. Its files have no
place for metadata.
"""

from __future__ import annotations

import importlib.util
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from segdeploy.backends.batch import check_batch
from segdeploy.core.contract import InputKind, OutputKind, TensorSpec
from segdeploy.core.errors import ArtifactError, BackendUnavailableError, BuildError
from segdeploy.core.files import write_bytes
from segdeploy.core.folder import ModelFolder
from segdeploy.core.session import Array, Backend, BuildRequest, Limits, Session
from segdeploy.core.target import ExportTarget, Precision
from segdeploy.frameworks.packages import find_packages, import_package
from segdeploy.frameworks.threads import num_threads
from segdeploy.measure.regions import Region, enter

_INPUT, _OUTPUT = "in0", "out0"
_PARAM, _BIN = "model.ncnn.param", "model.ncnn.bin"
_HALF_SWITCHES = ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic")
_ALWAYS_OFF = ("use_bf16_storage", "use_bf16_packed", "use_vulkan_compute")


def load_net(param: Path, weights: Path, precision: Precision) -> Any:
    """Return an ncnn.Net with the options of a precision.

    Raises:
        ArtifactError: If ncnn cannot load the two files, or their ends are not in0 and out0.
    """
    net = import_package("ncnn", "ncnn").Net()
    for switch in _HALF_SWITCHES:
        setattr(net.opt, switch, precision is Precision.FP16)
    for switch in _ALWAYS_OFF:
        setattr(net.opt, switch, False)
    threads = num_threads()
    if threads is not None:
        net.opt.num_threads = threads
    if net.load_param(str(param)) != 0 or net.load_model(str(weights)) != 0:
        raise ArtifactError(
            f"ncnn cannot open {param}: it is damaged or has a layer that this ncnn has not.",
            hint="Export it again.",
        )
    ends = [*net.input_names()], [*net.output_names()]
    if ends != ([_INPUT], [_OUTPUT]):
        raise ArtifactError(
            f"{param} takes and gives {ends}, expected {_INPUT} and {_OUTPUT}.",
            hint="Export it again.",
        )
    return net


class NcnnSession:
    """A loaded net; an extractor per call, as ncnn's interface is meant."""

    def __init__(
        self, net: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
    ) -> None:
        self._net = net
        self.inputs = inputs
        self.outputs = outputs

    def run(self, batch: Array) -> dict[str, Array]:
        """Return the outputs by name."""
        check_batch(batch, self.inputs[0])
        given = self._call(np.ascontiguousarray(batch[0]))
        enter(Region.DEVICE_TO_HOST)
        found = np.array(given)[None]
        spec = self.outputs[0]
        if not spec.fits(found.shape):
            raise ArtifactError(
                f"The net gave {found.shape}, but the manifest says {spec.shape}.",
                hint="Export it again.",
            )
        return {spec.name: found}

    def bind(self, batch: Array) -> Callable[[], None]:
        """Return a call that runs this batch once."""
        check_batch(batch, self.inputs[0])
        image = np.array(batch[0], order="C")

        def call() -> None:
            self._call(image)

        return call

    def close(self) -> None:
        """Free the net."""
        if self._net is not None:
            self._net.clear()
        self._net = None

    def _call(self, image: Array) -> Any:
        if self._net is None:
            raise ArtifactError("The session is closed.")
        extractor = self._net.create_extractor()
        taken = extractor.input(_INPUT, import_package("ncnn", "ncnn").Mat(image))
        code, found = extractor.extract(_OUTPUT)
        if taken != 0 or code != 0:
            raise ArtifactError(
                f"ncnn cannot run an image of shape {image.shape}: error {taken or code}."
            )
        return found


class NcnnBackend(Backend):
    """Builds `model.ncnn.param` with `model.ncnn.bin`, and opens them on the CPU."""

    name = "ncnn"
    precisions: tuple[Precision, ...] = (Precision.FP32, Precision.FP16)
    payload_name = _PARAM
    other_files = (_BIN,)
    packages = ("ncnn", "pnnx", "torch")
    limits = Limits(
        inputs=(InputKind.TENSOR,),
        outputs=(OutputKind.LOGITS, OutputKind.LOW_LOGITS),
        dynamic=False,
        batches=False,
    )

    def require(self) -> None:
        """Raise BackendUnavailableError if ncnn is missing; pnnx is asked for by `build`."""
        find_packages("ncnn", "ncnn")

    def build(self, request: BuildRequest) -> None:
        """Trace the checkpoint's module and convert it with pnnx.

        Raises:
            BuildError: If pnnx fails, or writes what ncnn cannot run.
            BackendUnavailableError: If pnnx is missing.
            CheckpointError: If the weights do not fit the model.
        """
        if request.size is None:
            raise BuildError("ncnn is built for one size, and got none.")
        program = find_pnnx()
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            _trace(request, folder / "model.ts")
            _convert(program, folder, request.size, request.precision)
            try:
                _run_once(folder, request)
            except ArtifactError as error:
                said = (folder / "log").read_text(errors="replace")[-1500:]
                raise BuildError(
                    f"pnnx wrote a net that ncnn cannot run: {error.message}", log=said
                ) from error
            for name in (_PARAM, _BIN):
                write_bytes(request.payload.with_name(name), (folder / name).read_bytes())

    def open(self, folder: ModelFolder, device: str = "cpu") -> Session:
        """Load the artifact's net on the CPU.

        Raises:
            ArtifactError: If the files cannot be read.
            BackendUnavailableError: If ncnn is missing, or the device is not the CPU.
        """
        if device != "cpu":
            raise BackendUnavailableError(
                f"ncnn runs on the CPU here, not on '{device}'.", hint="Use --device cpu."
            )
        manifest = folder.manifest
        precision = ExportTarget.parse(manifest.target or "").precision
        net = load_net(folder.payload, folder.path / _BIN, precision)
        return NcnnSession(net, manifest.inputs, manifest.outputs)


def find_pnnx() -> Path:
    """Return the converter's program; importing its package would import torch for nothing.

    Raises:
        BackendUnavailableError: If it is missing.
    """
    spec = importlib.util.find_spec("pnnx")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        for name in ("pnnx", "pnnx.exe"):
            if (program := Path(place) / name).is_file():
                return program
    raise BackendUnavailableError(
        "Building for ncnn needs pnnx, which is not installed.",
        hint="Install it: pip install 'segdeploy[ncnn]'",
    )


def _trace(request: BuildRequest, path: Path) -> None:
    """Write the module with its contract, not frozen: pnnx folds batch norms by itself."""
    import torch

    from segdeploy.backends.contract_module import ContractModule
    from segdeploy.frameworks.quiet import captured_log
    from segdeploy.zoo import load_module

    manifest = request.checkpoint.manifest
    module = ContractModule(
        load_module(request.checkpoint), request.io, manifest.task, len(manifest.classes),
        manifest.preprocess,
    ).eval()  # fmt: skip
    sample = torch.zeros(1, 3, *(request.size or ()))
    trace: Any = torch.jit.trace  # Untyped.
    with captured_log(), torch.no_grad():
        torch.jit.save(trace(module, sample, check_trace=False), str(path))


def _convert(program: Path, folder: Path, size: tuple[int, int], precision: Precision) -> None:
    height, width = size
    half = int(precision is Precision.FP16)
    done = subprocess.run(
        [
            str(program), "model.ts", f"inputshape=[1,3,{height},{width}]f32", f"fp16={half}",
            f"ncnnparam={_PARAM}", f"ncnnbin={_BIN}",
        ],
        cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        check=False,
    )  # fmt: skip
    (folder / "log").write_bytes(done.stdout)
    if done.returncode != 0 or not all((folder / name).is_file() for name in (_PARAM, _BIN)):
        raise BuildError(
            f"pnnx ended with {done.returncode}.", log=done.stdout.decode(errors="replace")[-2000:]
        )


def _run_once(folder: Path, request: BuildRequest) -> None:
    """Run the written net on an empty image; ArtifactError if it cannot give the right shape."""
    from segdeploy.core.contract import contract_tensors

    manifest = request.checkpoint.manifest
    inputs, outputs = contract_tensors(
        request.io, manifest.task, len(manifest.classes), request.size, batch=1
    )
    net = load_net(folder / _PARAM, folder / _BIN, request.precision)
    session = NcnnSession(net, inputs, outputs)
    try:
        session.run(np.zeros((1, 3, *(request.size or ())), np.float32))
    finally:
        session.close()


NCNN = NcnnBackend()
