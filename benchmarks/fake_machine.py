"""A machine that exists in numbers only: its clock is a float, its troubles are known."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from segdeploy.bench.pairs import NUM_PAIRS, Launch, Side

START_S, WARM_S, BLOCK_S = 0.3, 0.1, 0.1
CALLS = 3


@dataclass
class FakeMachine:
    """Runs launches of two artifacts whose times it makes up.

    Attributes:
        slowdown: Time of the candidate over that of the baseline.
        launch_bias: Standard deviation of a launch's own factor (logarithm).
        noise: Scale of a call's deviation (logarithm).
        tails: Degrees of freedom of Student's t for calls; infinity is normal.
        drift: Growth per second (0.001 = 0.1 %), and a slow wave of ten times that size.
        bursts: How many a second; each takes 0.05 to 1 s and costs 30 to 200 %.
        steps: How many a second; each moves the whole machine by up to 50 %.
    """

    slowdown: float = 1.0
    launch_bias: float = 0.0
    noise: float = 0.005
    tails: float = math.inf
    drift: float = 0.0
    bursts: float = 0.0
    steps: float = 0.0
    seed: int = 0
    now: float = 0.0
    launches: list[Launch] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self._level = 1.0
        self._burst_end, self._burst = 0.0, 1.0

    def clock(self) -> float:
        """Return the time in seconds."""
        return self.now

    def sample(self) -> float:
        """Run one launch of both sides, in the order of the real sampler; return its sampling."""
        biases = np.exp(self.random.normal(0, self.launch_bias, 2)) if self.launch_bias else (1, 1)
        factors = (5.0 * biases[0], 5.0 * biases[1] * self.slowdown)
        sides = (Side(), Side())
        self.now += 2 * (START_S + WARM_S)
        order = [0, 1] if len(self.launches) % 2 == 0 else [1, 0]
        for pair in range(NUM_PAIRS):
            for side in order if pair % 2 == 0 else order[::-1]:
                sides[side].blocks_ms.append(self._block(factors[side]))
        sampling = 2 * WARM_S + 2 * NUM_PAIRS * BLOCK_S
        self.launches.append(Launch(sides[1], sides[0], sampling))
        return sampling

    def run_alone(self, *, is_candidate: bool, calls: int) -> list[float]:
        """Return the calls of one fresh process, as a script takes them that knows no gate."""
        latency = 5.0 * (self.slowdown if is_candidate else 1.0)
        if self.launch_bias:
            latency *= float(np.exp(self.random.normal(0, self.launch_bias)))
        self.now += START_S + WARM_S
        found = []
        for _ in range(calls):
            found.append(latency * self._trouble(step=latency / 1000))
            self.now += found[-1] / 1000
        return found

    def _block(self, latency: float) -> list[float]:
        calls = []
        for _ in range(CALLS):
            self.now += BLOCK_S / CALLS
            calls.append(latency * self._trouble(step=BLOCK_S / CALLS))
        return calls

    def _trouble(self, step: float) -> float:
        """Return the factor of one call that takes `step` seconds."""
        if self.random.random() < self.steps * step:
            self._level = float(self.random.uniform(1.0, 1.5))
        if self.random.random() < self.bursts * step:
            self._burst_end = self.now + float(self.random.uniform(0.05, 1.0))
            self._burst = float(self.random.uniform(1.3, 3.0))
        wave = 1 + self.drift * self.now + 10 * self.drift * math.sin(self.now / 7)
        deviation = (
            self.random.normal() if math.isinf(self.tails) else self.random.standard_t(self.tails)
        )
        noise = math.exp(min(3.0, self.noise * abs(float(deviation))))
        return self._level * wave * noise * (self._burst if self.now < self._burst_end else 1.0)
