"""Batch norm over the values of all ranks: torch's on GPUs, our own where torch's refuses (CPU).

A rank counts as much as it has values, so that ranks with batches of different size equal one
process with all of them. Source: Ioffe & Szegedy, "Batch normalization", 2015 (forward and
backward); Chan, Golub & LeVeque, 1979, equation 2.1 (variance of joined samples).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812

from segdeploy.core.errors import ConfigError

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def synchronize_batch_norm(module: nn.Module, device: torch.device) -> nn.Module:
    """Return the module with its batch norms synchronised; names and tensors stay.

    Raises:
        ConfigError: If it has batch norms of another kind, which do more than normalise.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]  # noqa: SLF001
    others = {type(m).__name__ for m in norms if type(m) not in _PLAIN}
    if others:
        raise ConfigError(
            f"Batch norms of kind {', '.join(sorted(others))} cannot be synchronised.",
            hint="Leave --sync-batch-norm out, or take an encoder that is not of timm.",
        )
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call,no-any-return]
    for norm in norms:
        norm.__class__ = SyncBatchNorm
    return module


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):  # noqa: SLF001
    """Batch norm whose mean and variance are those of all ranks while it trains."""

    def _check_input_dim(self, _input: Tensor) -> None:
        """Any of (N, C, ...), as the norm that it was."""

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  torch's name
        """Return (N, C, ...) normalised per channel."""
        if not self.training or not dist.is_initialized():
            return super().forward(input)
        count, mean, variance = _statistics(input.detach())
        if count < 2:
            raise ValueError(f"one value per channel over all processes in {tuple(input.shape)}")
        self._follow(count, mean, variance)
        normalized: Tensor = _Normalize.apply(
            input, self.weight, self.bias, mean, variance, count, self.eps
        )  # type: ignore[no-untyped-call]
        return normalized

    @torch.no_grad()
    def _follow(self, count: float, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics; the variance is that of the population."""
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None  # noqa: S101  comes with the two
        self.num_batches_tracked.add_(1)
        share = self.momentum
        if share is None:
            share = 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        population = (variance * (count / (count - 1))).to(self.running_var.dtype)
        self.running_var.lerp_(population, share)


def _statistics(values: Tensor) -> tuple[float, Tensor, Tensor]:
    """Return how many values a channel has over all ranks, their mean and variance, each (C,)."""
    dims = [0, *range(2, values.dim())]
    count = values.numel() // values.shape[1]
    wide = values.float() if values.dtype in {torch.bfloat16, torch.float16} else values
    mean = wide.sum(dims, dtype=torch.float64) / max(count, 1)
    shape = [1, -1] + [1] * (values.dim() - 2)
    away = wide - mean.to(wide.dtype).view(shape)
    variance = (away * away).sum(dims, dtype=torch.float64) / max(count, 1)
    own = torch.stack([torch.full_like(mean, count), mean, variance])
    found = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(found, own)
    counts, means, variances = torch.stack(found).unbind(1)
    total = counts.sum(0).clamp(min=1)
    joined = (counts * means).sum(0) / total
    spread = (counts * (variances + (means - joined) ** 2)).sum(0) / total
    return float(counts[:, 0].sum()), joined.to(wide.dtype), spread.to(wide.dtype)


class _Normalize(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, where mean and variance depend on x."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        count: float,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(values, weight, mean, torch.rsqrt(variance + eps))
        ctx.count, ctx.has_bias = count, bias is not None
        return F.batch_norm(values, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        values, weight, mean, scale = ctx.saved_tensors
        dims = [0, *range(2, values.dim())]
        shape = [1, -1] + [1] * (values.dim() - 2)
        wide = slope.to(mean.dtype)
        normal = (values.to(mean.dtype) - mean.view(shape)) * scale.view(shape)
        total = torch.float64  # As torch's own norm on a CPU adds up.
        own = torch.stack([wide.sum(dims, dtype=total), (wide * normal).sum(dims, dtype=total)])
        joined = own.clone()
        dist.all_reduce(joined)
        level, tilt = (joined / ctx.count).to(mean.dtype)
        factor = scale if weight is None else scale * weight
        inner = wide - level.view(shape) - normal * tilt.view(shape)
        back = (inner * factor.view(shape)).to(values.dtype)
        # Of weight and bias each rank has its own part, as of any parameter: DDP adds them up.
        return (
            back,
            None if weight is None else own[1].to(weight.dtype),
            own[0].to(mean.dtype) if ctx.has_bias else None,
            None, None, None, None,
        )  # fmt: skip
