"""AOTInductor: torch.export and a C++ compiler make a package of machine code, run by torch.

A package is a shared library: opening one runs its code, so open only files from people you trust.
It fits one torch release and the instruction sets that it was compiled for. Another CPU would die
of SIGILL, so both are in the package's metadata and are checked before anything is loaded. The
sets are those of Inductor's own vector code: with its default, `-march=native`, nobody could say
what a package needs.

Settings that Inductor's defaults get wrong for a file that travels:
- kernels would be specialised to the number of threads of the machine that built them;
- lines of debug tables and the generated sources would carry that machine's paths;
- without freezing, batch norms stay separate passes (0.82 of eager's CPU time instead of 0.67).

bf16: the module between the contract's float32 ends; batch norms keep float32 statistics until
they are folded into the convolutions.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdeploy.backends.batch import check_batch
from segdeploy.backends.pytorch import to_device
from segdeploy.core.contract import InputKind, TensorSpec
from segdeploy.core.errors import ArtifactError, BackendUnavailableError, BuildError, DataError
from segdeploy.core.files import canonical_json
from segdeploy.core.folder import ModelFolder
from segdeploy.core.session import Array, Backend, BuildRequest, Session
from segdeploy.core.target import Precision
from segdeploy.frameworks.quiet import captured_log, tail
from segdeploy.frameworks.threads import num_threads
from segdeploy.frameworks.torch import find_torch, require_torch
from segdeploy.measure.regions import Region, enter

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

PREFIX = "segdeploy."
_SAMPLE_SIZE = (96, 128)
_MIN_SIZE, _MAX_SIZE, _MAX_BATCH = 32, 16384, 4096
_LIBRARY, _METADATA = ".wrapper.so", ".wrapper_metadata.json"
_LEFT_OUT = (".cpp", ".kernel_metadata.json", "serialization_id")
_MOST_IN_LIBRARY = 2_000_000_000
_LONG_AGO = (1980, 1, 1, 0, 0, 0)


class AotiSession:
    """A loaded package on the CPU."""

    def __init__(
        self, package: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
    ) -> None:
        self._package = package
        self.inputs = inputs
        self.outputs = outputs

    def run(self, batch: Array) -> dict[str, Array]:
        """Return the outputs by name."""
        enter(Region.HOST_TO_DEVICE)
        placed = self._place(batch)
        enter(Region.RUN)
        found = self._forward(placed)
        enter(Region.DEVICE_TO_HOST)
        tensors = found if isinstance(found, (tuple, list)) else (found,)
        return {
            spec.name: tensor.numpy() for spec, tensor in zip(self.outputs, tensors, strict=True)
        }

    def bind(self, batch: Array) -> Callable[[], None]:
        """Return a call that runs this batch once."""
        placed = self._place(batch)

        def call() -> None:
            self._forward(placed)

        return call

    def close(self) -> None:
        """Free the library."""
        self._package = None

    def _place(self, batch: Array) -> torch.Tensor:
        """Check what the machine code itself does not: outside its bounds it reads anything."""
        spec = self.inputs[0]
        check_batch(batch, spec)
        sides = batch.shape[1:3] if spec.name == InputKind.IMAGE else batch.shape[2:]
        if not all(_MIN_SIZE <= side <= _MAX_SIZE for side in sides) or len(batch) > _MAX_BATCH:
            raise DataError(
                f"The package takes up to {_MAX_BATCH} images with sides of {_MIN_SIZE} to "
                f"{_MAX_SIZE}, found {' x '.join(map(str, batch.shape))}."
            )
        return to_device(batch, "cpu")

    def _forward(self, tensor: torch.Tensor) -> Any:
        import torch

        if self._package is None:
            raise ArtifactError("The session is closed.")
        try:
            with torch.inference_mode():
                return self._package(tensor)
        except RuntimeError as error:
            raise ArtifactError(
                f"AOTInductor cannot run a batch of shape {tuple(tensor.shape)}: {error}"
            ) from error


def require_compiler() -> None:
    """Raise BackendUnavailableError if there is no C++ compiler; running a package needs none."""
    compiler = os.environ.get("CXX") or ("clang++" if platform.system() == "Darwin" else "g++")
    if shutil.which(compiler) is None:
        raise BackendUnavailableError(
            f"AOTInductor needs a C++ compiler, and there is no {compiler}.",
            hint="Install one (apt-get install g++), or set CXX.",
        )


class AotiBackend(Backend):
    """Builds and opens `model.pt2`."""

    name = "aoti"
    precisions: tuple[Precision, ...] = (Precision.FP32, Precision.BF16)
    payload_name = "model.pt2"
    packages = ("torch",)

    def require(self) -> None:
        """Raise BackendUnavailableError if torch is missing; a build asks for a compiler too."""
        find_torch()

    def build(self, request: BuildRequest) -> None:
        """Export the checkpoint's module with its contract, and compile it for this CPU.

        Raises:
            BuildError: If torch.export or Inductor fails; with the tail of its log.
            BackendUnavailableError: If there is no C++ compiler.
            CheckpointError: If the weights do not fit the model.
        """
        torch = require_torch()
        require_compiler()
        if any(letter.isspace() for letter in tempfile.gettempdir()):
            raise BuildError(
                "AOTInductor calls the compiler without quotes, and the folder for temporary files "
                f"has a space in its name: '{tempfile.gettempdir()}'.",
                hint="Set TMPDIR to a folder without one.",
            )
        module = _contract_module(request)
        model = request.checkpoint.manifest.model
        with captured_log() as log, torch.no_grad():
            try:
                _compile(module, request)
            except Exception as error:
                text = f"{tail(log)}\n{type(error).__name__}: {error}"[-2000:]
                raise BuildError(
                    f"AOTInductor cannot compile {model} ({type(error).__name__}).",
                    log=text.strip(),
                ) from error

    def open(self, folder: ModelFolder, device: str = "cpu") -> Session:
        """Load the artifact's package: this runs its code.

        Raises:
            ArtifactError: If the payload cannot be read.
            BackendUnavailableError: If it is not for this torch, CPU or device.
        """
        torch = require_torch()
        if device != "cpu":
            raise BackendUnavailableError(
                f"The package is machine code for the CPU, not for '{device}'.",
                hint="Use --device cpu.",
            )
        try:
            check_machine(read_metadata(folder.payload), str(folder.payload))
            threads = num_threads()
            if threads is not None:
                torch.set_num_threads(threads)
            package = torch._inductor.aoti_load_package(  # noqa: SLF001  its public place
                str(folder.payload), run_single_threaded=True
            )
        except (RuntimeError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ArtifactError(
                f"AOTInductor cannot open {folder.payload}: {error}", hint="Export it again."
            ) from error
        manifest = folder.manifest
        return AotiSession(package, manifest.inputs, manifest.outputs)


def read_metadata(payload: Path) -> dict[str, str]:
    """Return what a package says about itself; loads nothing.

    Raises:
        KeyError, ValueError, OSError, BadZipFile: If it is no such package.
    """
    with zipfile.ZipFile(payload) as archive:
        name = next((n for n in archive.namelist() if n.endswith(_METADATA)), None)
        if name is None:
            raise KeyError("it holds no metadata")
        found: dict[str, str] = json.loads(archive.read(name))
    return found


def check_machine(metadata: Mapping[str, str], what: str) -> None:
    """Check that this torch and this CPU can run a package.

    Raises:
        BackendUnavailableError: If they cannot; the machine code would crash.
    """
    torch = require_torch()
    wanted, here = metadata[f"{PREFIX}torch"], _release(torch.__version__)
    if wanted != here:
        raise BackendUnavailableError(
            f"{what} is for torch {wanted}, and this is torch {here}.",
            hint=f"Export it again with this torch, or pip install 'torch=={wanted}'.",
        )
    machine = metadata[f"{PREFIX}machine"]
    features = cpu_features()
    needed = set(metadata[f"{PREFIX}cpu_features"].split())
    missing = needed - features if features is not None else set()
    if machine != platform.machine() or missing:
        lacks = f" without {', '.join(sorted(missing))}" if missing else ""
        raise BackendUnavailableError(
            f"{what} is machine code for {machine}, and this is {platform.machine()}{lacks}.",
            hint="Export it again on this machine.",
        )


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str] | None:
    """Return the instruction sets of this CPU, e.g. {"avx2", "avx512bf16"}; None if unknown."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in {"flags", "Features"}:
            return {_plain(word) for word in value.split()}
    return None


def compiled_features() -> set[str]:
    """Return the instruction sets that Inductor compiles for on this machine."""
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    found: set[str] = set()
    for flag in pick_vec_isa().build_arch_flags().split():
        if flag.startswith("-march="):
            found |= {_plain(word) for word in flag.split("+")[1:]}
        elif "=" not in flag:
            found.add(_plain(flag.removeprefix("-m")))
    return found


def _plain(feature: str) -> str:
    """Compilers and Linux write the same set as avx512bf16 and avx512_bf16."""
    return feature.replace("_", "").replace("-", "")


def _release(version: str) -> str:
    return version.partition("+")[0]


def _contract_module(request: BuildRequest) -> nn.Module:
    import torch

    from segdeploy.backends.contract_module import ContractModule
    from segdeploy.zoo import load_module, main_logits

    class LowPrecision(torch.nn.Module):
        """A module in bf16 that takes float32."""

        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module.to(torch.bfloat16)
            for part in self.module.modules():
                if isinstance(part, torch.nn.BatchNorm2d):
                    part.float()

        def forward(self, tensor: Tensor) -> Tensor:
            logits: Tensor = main_logits(self.module(tensor.to(torch.bfloat16)))
            return logits  # The contract makes float32 of them.

    manifest = request.checkpoint.manifest
    module = load_module(request.checkpoint)
    if request.precision is Precision.BF16:
        module = LowPrecision(module)
    return ContractModule(
        module, request.io, manifest.task, len(manifest.classes), manifest.preprocess
    ).eval()


def _compile(module: nn.Module, request: BuildRequest) -> None:
    import torch
    import torch._inductor

    is_image = request.io.input is InputKind.IMAGE
    height, width = request.size or _SAMPLE_SIZE
    sample = torch.zeros(2, 3, height, width)
    if is_image:
        sample = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    dim = torch.export.Dim
    dynamic: dict[int, Any] = {0: dim("N", min=1, max=_MAX_BATCH)}
    if request.size is None:
        first = 1 if is_image else 2
        dynamic[first] = dim("H", min=_MIN_SIZE, max=_MAX_SIZE)
        dynamic[first + 1] = dim("W", min=_MIN_SIZE, max=_MAX_SIZE)
    program = torch.export.export(module, (sample,), dynamic_shapes=(dynamic,))
    with tempfile.TemporaryDirectory() as scratch:
        package = str(Path(scratch) / request.payload.name)
        torch._inductor.aoti_compile_and_package(  # noqa: SLF001  its public place
            program,
            package_path=package,
            inductor_configs={
                "freezing": True,
                "cpp.dynamic_threads": True,
                "cpp.march": "",
                "aot_inductor.enable_line_tables": False,
                "aot_inductor.precompile_headers": False,
                "aot_inductor.metadata": _metadata(request.options.get("facts", {})),
            },
        )
        _repack(Path(package), request.payload)


def _metadata(facts: Mapping[str, Any]) -> dict[str, str]:
    import torch

    told = {
        **facts,
        "torch": _release(torch.__version__),
        "machine": platform.machine(),
        "cpu_features": " ".join(sorted(compiled_features())),
    }
    return {
        f"{PREFIX}{name}": value if isinstance(value, str) else canonical_json(value).decode()
        for name, value in told.items()
    }


def _repack(package: Path, payload: Path) -> None:
    """Write the package without its sources, and without names that are hashes of a path."""
    folder = f"{payload.stem}/data/aotinductor/model/{payload.stem}"
    with zipfile.ZipFile(package) as found, zipfile.ZipFile(payload, "w") as archive:
        for entry in found.namelist():
            content, name = found.read(entry), entry
            if entry.endswith(_LIBRARY):
                content, name = _without_traces(content, package.parent), folder + _LIBRARY
            elif entry.endswith(_METADATA):
                name = folder + _METADATA
            elif entry.endswith(_LEFT_OUT):
                continue
            archive.writestr(zipfile.ZipInfo(name, _LONG_AGO), content)


def _without_traces(library: bytes, scratch: Path) -> bytes:
    """Return a library without what another process would write in another way.

    Symbols named by hashes of paths go, where there is a `strip`; the paths and the addresses of
    Python's objects in its messages are overwritten.
    """
    from torch._inductor.runtime.cache_dir_utils import cache_dir
    from torch.utils.cpp_extension import include_paths

    strip = shutil.which("strip")
    # Of 2 GB and more, the weights stand behind the end of the library, and strip drops them.
    if strip is not None and len(library) < _MOST_IN_LIBRARY:
        file = scratch / "library.so"
        file.write_bytes(library)
        command = [strip, "--strip-unneeded", "-R", ".note.gnu.build-id", str(file)]
        subprocess.run(command, check=True, capture_output=True)
        library = file.read_bytes()
    for place in (cache_dir(), *include_paths()):
        path = re.escape(place.encode()) + rb"/[\w./+-]*?([\w+-]+)\.(?:wrapper\.)?(cpp|h)\0"
        library = re.sub(path, _plain_path, library)
    return re.sub(rb" at 0x[0-9a-f]{12}>", b" at 0x" + b"0" * 12 + b">", library)


def _plain_path(path: re.Match[bytes]) -> bytes:
    name = path[1] + b".h" if path[2] == b"h" else b"model.cpp"
    return name.ljust(len(path[0]) - 1) + b"\0"


AOTI = AotiBackend()
