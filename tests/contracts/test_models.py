"""What every model of the zoo must do; a new entry is tested without a new test."""

from __future__ import annotations

import pytest
import torch

from segdeploy.core.task import Task
from segdeploy.zoo import MODELS, create_model, describe_models, main_logits
from segdeploy.zoo.checkpoint import num_parameters
from segdeploy.zoo.table import model_row

NAMES = MODELS.names()


def test_the_generated_table_has_every_model_once() -> None:
    assert [row["name"] for row in describe_models()] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_generated_table_equals_a_recomputation(name: str) -> None:
    listed = {row["name"]: row for row in describe_models()}
    assert listed[name] == model_row(name)


@pytest.mark.parametrize("name", NAMES)
def test_any_size_from_32_on_gives_finite_logits_of_that_size(name: str) -> None:
    torch.manual_seed(0)
    net = create_model(name, 3).eval()
    for size in ((32, 32), (33, 47), (65, 32)):
        with torch.inference_mode():
            logits = main_logits(net(torch.randn(1, 3, *size)))
        assert logits.shape == (1, 3, *size)
        assert logits.dtype == torch.float32
        assert torch.isfinite(logits).all()
        assert logits.std() > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_computed_image_by_image(name: str) -> None:
    torch.manual_seed(0)
    net = create_model(name, 2).eval().double()  # Fresh deep nets amplify the rounding of fp32.
    images = torch.randn(2, 3, 40, 33).double()
    with torch.inference_mode():
        both = main_logits(net(images))
        alone = torch.cat([main_logits(net(image[None])) for image in images])
    assert (both - alone).abs().max() <= 1e-5 * both.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_gives_the_main_logits_alone(name: str) -> None:
    net = create_model(name, 2).eval()
    with torch.inference_mode():
        assert list(net(torch.zeros(1, 3, 32, 32))) == ["out"]


@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_input_channels_is_taken(name: str) -> None:
    for channels in (1, 4):
        net = create_model(name, 2, in_channels=channels).eval()
        with torch.inference_mode():
            assert main_logits(net(torch.randn(1, channels, 32, 64))).shape == (1, 2, 32, 64)


@pytest.mark.parametrize("name", NAMES)
def test_building_twice_shares_nothing(name: str) -> None:
    first, second = create_model(name, 2), create_model(name, 2)
    assert num_parameters(first) == num_parameters(second)
    places = {p.data_ptr() for p in first.state_dict().values() if p.numel()}
    assert not places & {p.data_ptr() for p in second.state_dict().values() if p.numel()}
    before = {k: v.clone() for k, v in second.state_dict().items()}
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.fill_(3)
    assert all(torch.equal(v, before[k]) for k, v in second.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_every_trainable_parameter_gets_a_gradient_in_training(name: str) -> None:
    torch.manual_seed(0)
    net = create_model(name, 2).train()
    output = net(torch.randn(2, 3, 64, 64))
    assert all(logits.shape == (2, 2, 64, 64) for key, logits in output.items() if key != "se")
    sum((logits**2).mean() for logits in output.values()).backward()
    idle = [key for key, p in net.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []


@pytest.mark.parametrize("name", NAMES)
def test_spec_facts_are_sensible(name: str) -> None:
    spec = MODELS.get(name)
    assert spec.name == name
    assert spec.task in set(Task)
    assert spec.output_stride in {1, 2, 4, 8, 16, 32}
    assert min(spec.input_size) >= 32
    assert spec.source
