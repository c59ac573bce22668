"""`lint`: whether a runtime would take a graph, from an artifact folder or a lone ONNX file.

Sizes matter: a graph with dynamic sizes is fine where a range of them is known, from the flag or
from the artifact's own bounds. A given size is written into the graph's input first, so that the
rules see the shapes that the runtime will see.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdeploy.core.contract import InputKind, SizeBounds
from segdeploy.core.errors import ArtifactError, ConfigError, UnknownNameError
from segdeploy.core.folder import load_artifact
from segdeploy.core.manifest import Manifest

if TYPE_CHECKING:
    import onnx

    from segdeploy.graph.lint import Finding

Size = tuple[int, int] | SizeBounds | None


@dataclass(frozen=True)
class LintReport:
    """What was linted, for which runtime, and what was found; true if nothing is refused."""

    model: str
    runtime: str
    findings: tuple[Finding, ...]

    def __bool__(self) -> bool:
        return not any(finding.level == "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `lint`."""
        return {**asdict(self), "passed": bool(self)}


def lint(path: Path, runtime: str, size: Size = None) -> LintReport:
    """Return what `runtime` refuses in an ONNX file, or in an artifact's payload.

    Args:
        path: A `.onnx` file, or an artifact folder whose payload is one.
        runtime: A name of `graph.lint.RULES`.
        size: (H, W), or a range, that the graph is to run at; default: an artifact's own bounds.

    Raises:
        UnknownNameError: If there are no rules for the runtime.
        ArtifactError: If there is no ONNX graph at `path`.
    """
    from segdeploy.frameworks.torch import require_onnx
    from segdeploy.graph.lint import RULES, lint_graph
    from segdeploy.graph.lint.facts import with_open_sizes
    from segdeploy.graph.proto import load_graph

    require_onnx()
    if runtime not in RULES:
        raise UnknownNameError(
            f"There are no lint rules for '{runtime}'.", hint=f"One of {', '.join(RULES)}."
        )
    file, bounds = _find_graph(path)
    model = with_open_sizes(load_graph(file))
    wanted = size or bounds
    if isinstance(wanted, tuple):
        model = _at_size(model, wanted)
    found = lint_graph(model, runtime, has_sizes=wanted is not None, folder=file.parent)
    return LintReport(str(path), runtime, tuple(found))


def _find_graph(path: Path) -> tuple[Path, Size]:
    """Return the ONNX file, and the sizes that the artifact was made for."""
    if path.is_dir():
        artifact = load_artifact(path)
        if artifact.payload.suffix != ".onnx":
            raise ArtifactError(
                f"{path} holds {artifact.payload.name}, and only ONNX graphs are linted.",
                hint="Lint the onnx-fp32, onnx-fp16 or onnx-int8 artifact that goes with it.",
            )
        return artifact.payload, artifact.manifest.bounds or _fixed_size(artifact.manifest)
    if not path.is_file():
        raise ArtifactError(f"There is no file or folder {path}.")
    return path, None


def _fixed_size(manifest: Manifest) -> tuple[int, int] | None:
    """Return the (H, W) of an artifact of one size; of its batch one image is judged."""
    spec = manifest.inputs[0]
    sides = spec.shape[1:3] if spec.name == InputKind.IMAGE else spec.shape[2:4]
    height, width = sides
    return None if height is None or width is None else (height, width)


def _at_size(model: onnx.ModelProto, size: tuple[int, int]) -> onnx.ModelProto:
    """Return the graph with one image of this size as its input, as far as that is left open.

    Raises:
        ConfigError: If the graph is of another size.
    """
    from segdeploy.graph.proto import copy_model, initializers

    fixed = copy_model(model)
    stored = initializers(fixed.graph)
    for value in fixed.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name in stored or len(dims) != 4:
            continue
        is_nhwc = dims[3].dim_value in {1, 3} and dims[1].dim_value not in {1, 3}
        batch, height, width = (dims[i] for i in ((0, 1, 2) if is_nhwc else (0, 2, 3)))
        batch.dim_value = batch.dim_value or 1
        for dim, side in zip((height, width), size, strict=True):
            if dim.dim_value not in {0, side}:
                raise ConfigError(
                    f"The graph's input {value.name} is of one size, and --size says "
                    f"{size[0]}x{size[1]}.",
                    hint="Leave --size out.",
                )
            dim.dim_value = side
    return fixed
