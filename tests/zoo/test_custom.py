"""Models of one's own: any module by `package.module:callable`, with outputs of any usual form."""

from __future__ import annotations

import sys
import textwrap
from collections import OrderedDict
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  torch's own convention

from segdeploy.core.errors import ConfigError, UnknownNameError
from segdeploy.zoo import MODELS, create_model
from segdeploy.zoo.catalog import ModelRegistry
from segdeploy.zoo.custom import check_runs, plugin_spec
from segdeploy.zoo.outputs import presence_logits, split_outputs
from segdeploy.zoo.spec import ModelSpec

_NETS = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self, num_classes, width=4):
            super().__init__()
            self.backbone = nn.Conv2d(3, width, 3, stride=4, padding=1)
            self.head = nn.Conv2d(width, num_classes, 1)

        def forward(self, x):
            return self.head(self.backbone(x))

    class Needy(nn.Module):
        def __init__(self, num_classes, width):
            super().__init__()

    def build(num_classes):
        return Net(num_classes, width=2)

    def broken(num_classes):
        raise KeyError("no such layer")

    def text(num_classes):
        return "net"

    def other_classes(num_classes):
        return Net(num_classes + 1)

    class Fails(Net):
        def forward(self, x):
            return self.head(x)

    def leaves(num_classes):
        raise SystemExit(2)

    class Extra(Net):
        def get_extra_state(self):
            return {"version": 1}

    class TrainsNot(Net):
        def forward(self, x):
            if self.training:
                raise KeyError("train")
            return super().forward(x)

    class Detached(Net):
        def forward(self, x):
            return super().forward(x).detach()

    class Features(Net):
        def forward(self, x):
            return (super().forward(x), self.backbone(x)) if self.training else super().forward(x)

    class Presence(Net):
        def forward(self, x):
            logits = super().forward(x)
            return {"out": logits, "se": logits}

    class Normed(Net):
        def __init__(self, num_classes):
            super().__init__(num_classes)
            self.norm = nn.BatchNorm2d(3, affine=False)
            self.drop = nn.Dropout()

        def forward(self, x):
            return super().forward(self.drop(self.norm(x)))

    nothing = 3
    print("imported")
"""


@pytest.fixture
def nets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[pytest.CaptureFixture[str]]:
    """A module `own_nets` in the current folder; it prints a word when it is imported."""
    (tmp_path / "own_nets.py").write_text(textwrap.dedent(_NETS))
    (tmp_path / "own_broken.py").write_text("import no_such_package\n")
    (tmp_path / "own_script.py").write_text("import sys\nsys.exit('usage: own_script FILE')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    yield capsys
    for name in ("own_nets", "own_broken", "own_script"):
        sys.modules.pop(name, None)


def test_a_name_is_known_and_described_without_importing_it(
    nets: pytest.CaptureFixture[str],
) -> None:
    assert "own_nets:build" in MODELS
    spec = MODELS.get("own_nets:build")
    assert (spec.name, spec.output_stride) == ("own_nets:build", None)
    assert "own_nets" not in sys.modules
    module = create_model("own_nets:build", 5)
    assert nets.readouterr() == ("", "imported\n")  # stdout is for results.
    assert list(module.state_dict()) == [
        "backbone.weight", "backbone.bias", "head.weight", "head.bias",
    ]  # fmt: skip


@pytest.mark.usefixtures("nets")
@pytest.mark.parametrize("size", [(32, 32), (33, 47)])
def test_small_logits_are_resized_to_the_input(size: tuple[int, int]) -> None:
    module = create_model("own_nets:Net", 3)
    image = torch.randn(2, 3, *size)
    small = module.get_submodule("head")(module.get_submodule("backbone")(image))
    expected = F.interpolate(small, size=size, mode="bilinear", align_corners=False)
    found = module(image)
    assert list(found) == ["out"]
    torch.testing.assert_close(found["out"], expected)


@pytest.mark.usefixtures("nets")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_nets:Needy", "missing a required argument: 'width'"),
        ("own_nets:broken", r"KeyError: 'no such layer' \(.*own_nets\.py:\d+\)"),
        ("own_nets:text", "returned a str"),
        ("own_nets:nothing", "is a int, not a callable"),
        ("own_nets:lost", "has no attribute 'lost'"),
        ("own_nets:leaves", "SystemExit: 2"),
        ("own_script:build", "SystemExit: usage: own_script FILE"),
        ("own_nets:Extra", "more than tensors: _extra_state"),
        ("own_broken:build", "No module named 'no_such_package'"),
        ("no_such_module:build", "No module named 'no_such_module'"),
    ],
)
def test_what_is_wrong_with_foreign_code_is_a_config_error(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_model(name, 3)


@pytest.mark.usefixtures("nets")
def test_errors_of_the_users_code_are_chained() -> None:
    with pytest.raises(ConfigError) as caught:
        create_model("own_nets:broken", 3)
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(ConfigError, match="in_channels=4"):
        create_model("own_nets:build", 3, in_channels=4)


@pytest.mark.usefixtures("nets")
def test_a_net_that_cannot_run_says_so_before_training() -> None:
    module = create_model("own_nets:Fails", 3)
    head = module.get_submodule("head").eval()
    with pytest.raises(ConfigError, match=r"cannot run a batch of shape \(2, 3, 32, 48\)"):
        check_runs(module, "own_nets:Fails", (32, 48))
    assert module.training
    assert not head.training  # Modes are as they were.
    with pytest.raises(ConfigError, match=r"for 3 classes .* gives a tensor \(2, 4, 8, 12\)"):
        check_runs(create_model("own_nets:other_classes", 3), "", (32, 48))


@pytest.mark.usefixtures("nets")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("TrainsNot", "KeyError: 'train'"),
        ("Detached", "no parameter that can be trained"),
        ("Features", r"gives a tensor \(2, 4, 8, 12\)"),
        ("Presence", r"Presence logits \(se\) are \(N, 3\)"),
    ],
)
def test_a_net_that_cannot_train_says_so_before_training(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_runs(create_model(f"own_nets:{name}", 3), name, (32, 48))


@pytest.mark.usefixtures("nets")
def test_the_trial_leaves_statistics_and_random_numbers_as_they_were() -> None:
    module = create_model("own_nets:Normed", 3)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    numbers = torch.get_rng_state()
    check_runs(module, "own_nets:Normed", (32, 48))
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), numbers)


@pytest.mark.parametrize("name", ["a:b:c", "a:", ":b"])
def test_a_misspelt_callable_is_told_its_form(name: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        create_model(name, 3)
    assert "package.module:callable" in caught.value.hint


class _Result:
    """As the results of transformers: an object with logits."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits


class _ResultDict(OrderedDict[str, torch.Tensor]):
    """As transformers' ModelOutput: a dict whose entries are attributes as well."""

    def __getattr__(self, name: str) -> torch.Tensor:
        if name in self:
            return self[name]
        raise AttributeError(name)


class _Returns(nn.Module):
    """Returns what it was given, made of half-size logits."""

    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)
        self.wrap = wrap

    def forward(self, x: torch.Tensor) -> Any:
        return self.wrap(self.conv(x)[..., ::2, ::2])


@pytest.mark.parametrize(
    ("wrap", "keys"),
    [
        (lambda t: t, ["out"]),
        (lambda t: {"out": t, "aux": t, "features": t}, ["out", "aux1"]),
        (lambda t: {"out": t, "aux1": t, "aux2": t}, ["out", "aux1", "aux2"]),
        (lambda t: {"out": t, "se": t.mean((2, 3))}, ["out", "se"]),
        (_Result, ["out"]),
        (lambda t: _ResultDict(logits=t, hidden=t), ["out"]),
        (lambda t: (t, t), ["out", "aux1"]),
        (lambda t: [t], ["out"]),
    ],
)
def test_every_usual_output_form_is_taken(wrap: Any, keys: list[str]) -> None:
    module = plugin_spec("mine", lambda _: _Returns(wrap)).build(2)
    found = module(torch.randn(2, 3, 34, 40))
    assert list(found) == keys
    main, others = split_outputs(found)
    assert main.shape == (2, 2, 34, 40)
    assert all(each.shape == main.shape for each in others)
    presence = presence_logits(found)
    assert (presence is not None) == ("se" in keys)
    assert presence is None or presence.shape == (2, 2)


@pytest.mark.parametrize(
    "wrap", [lambda t: t[:, :1], lambda t: t.mean((2, 3)), lambda t: {"out": t[0]}, lambda _: "x"]
)
def test_what_are_no_logits_of_the_classes_is_refused(wrap: Any) -> None:
    module = plugin_spec("mine", lambda _: _Returns(wrap)).build(2)
    with pytest.raises(ConfigError, match="gives"):
        module(torch.randn(2, 3, 32, 32))


class _FullSize(nn.Module):
    """Gives logits of the input's own size, or two pixels less where `stride` is 2."""

    def __init__(self, num_classes: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, num_classes, 3, stride, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.conv(x)
        return logits


@pytest.mark.parametrize(("stride", "num_resizes"), [(1, 0), (2, 1)])
def test_an_exported_graph_resizes_only_where_sizes_can_differ(
    stride: int, num_resizes: int
) -> None:
    module = plugin_spec("mine", lambda k: _FullSize(k, stride)).build(2).eval()
    sides = {2: torch.export.Dim("H", min=32, max=4096), 3: torch.export.Dim("W", min=32, max=4096)}
    wrapped = nn.Sequential(module)
    graph = torch.export.export(wrapped, (torch.zeros(2, 3, 64, 96),), dynamic_shapes=[sides])
    names = [str(node.target) for node in graph.graph.nodes]
    assert sum("upsample" in name or "interpolate" in name for name in names) == num_resizes
    image = torch.randn(2, 3, 67, 45)
    torch.testing.assert_close(graph.module()(image)["out"], module(image)["out"])


def test_a_traced_net_fits_other_sizes() -> None:
    """Rounded up at an odd size, equal at the traced one: the resize must be in the graph."""

    class Rounds(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            small = F.max_pool2d(x[:, :2], 2, ceil_mode=True)
            return small.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    module = plugin_spec("mine", lambda _: Rounds()).build(2).eval()

    class Main(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.module(x)["out"]
            return logits

    from segdeploy.frameworks.torchscript import trace_module

    traced = trace_module(Main(), torch.zeros(2, 3, 64, 64))
    image = torch.randn(1, 3, 33, 47)
    found = traced(image)
    assert found.shape == (1, 2, 33, 47)
    torch.testing.assert_close(found, module(image)["out"])


def test_a_plug_in_is_a_spec_or_a_callable(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"mine": "torch.nn:Identity", "theirs": "segdeploy.zoo.architectures.unet:UNET"}
    points = [metadata.EntryPoint(n, v, "segdeploy.models") for n, v in values.items()]
    monkeypatch.setattr(
        metadata, "entry_points", lambda group: [p for p in points if p.group == group]
    )
    registry = ModelRegistry()
    assert set(values) <= set(registry)
    assert isinstance(registry.get("mine"), ModelSpec)
    assert isinstance(registry.get("mine").build(2), nn.Identity)
    assert registry.get("theirs").name == "unet"
