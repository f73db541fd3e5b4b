"""Rate-distortion against likelihood in the plane: a source of known entropy, and a small flow.

The components of a vector stand for A-INN's two branches: the flow uses the library's `Coupling`.
"""

import math
from dataclasses import dataclass

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, Normal

from ..errors import AINNError
from ..network.blocks import Coupling

HELD_OUT = 10**6  #: seed of the vectors that training does not see


@dataclass(frozen=True)
class Banana:
    r"""A bent Gaussian: :math:`x = (a,\; b + c\,(a^2 - \sigma_a^2))`, a and b independent normals.

    The bend is a shear of determinant 1 and changes no entropy:
    :math:`h(x) = h(a) + h(b) = \log_2(2\pi e\,\sigma_a\sigma_b)`.

    >>> round(Banana(1.0, 1.0).entropy, 3)
    4.094
    """

    sigma_a: float = 1.0
    sigma_b: float = 0.25
    bend: float = 0.5  #: c

    @property
    def entropy(self) -> float:
        """Differential entropy h(x) in bits per vector."""
        return math.log2(2 * math.pi * math.e * self.sigma_a * self.sigma_b)

    def sample(self, count: int, seed: int = 0) -> Tensor:
        """Independent vectors x, (count, 2), float64."""
        generator = torch.Generator().manual_seed(seed)
        a, b = torch.randn(2, count, generator=generator, dtype=torch.float64)
        a, b = a * self.sigma_a, b * self.sigma_b
        return torch.stack([a, b + self.bend * (a**2 - self.sigma_a**2)], dim=1)

    def log2_density(self, x: Tensor) -> Tensor:
        """log₂ p(x), (n, 2) -> (n,)."""
        a = x[:, 0]
        b = x[:, 1] - self.bend * (a**2 - self.sigma_a**2)
        nats = Normal(0.0, self.sigma_a).log_prob(a) + Normal(0.0, self.sigma_b).log_prob(b)
        return nats / math.log(2)


class Flow(nn.Module):
    """A bijection f of the plane with inverse g, and a prior of y = f(x).

    f is made of coupling layers whose nets have tanh, so that g is smooth. The prior is a mixture
    of four Gaussians for each component. A new flow is the identity. Everything is float64.

    >>> flow, x = Flow(), Banana().sample(5)
    >>> y, log_det = flow(x)
    >>> bool((flow.inverse(y) == x).all()), log_det.tolist()
    (True, [0.0, 0.0, 0.0, 0.0, 0.0])
    """

    def __init__(self, couplings: int = 4):
        super().__init__()
        layers = [Coupling(1, 24, 1, clamp=2.0, shared=True) for _ in range(couplings)]
        self.couplings = nn.ModuleList(layers)
        for layer in layers:
            for half in (layer.from_low, layer.from_high):
                half.net = nn.Sequential(
                    nn.Flatten(), nn.Linear(1, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(),
                    nn.Linear(24, 2), nn.Unflatten(1, (2, 1, 1)))
                nn.init.zeros_(half.net[5].weight)
                nn.init.zeros_(half.net[5].bias)
        self.logits = nn.Parameter(torch.zeros(2, 4))
        self.means = nn.Parameter(torch.linspace(-1, 1, 4).repeat(2, 1))
        self.log_scales = nn.Parameter(torch.zeros(2, 4))
        self.double()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (n, 2) -> y = f(x) (n, 2) and ln|det J_f(x)| (n,)."""
        low, high = x[:, :, None, None].split(1, dim=1)  # n images of one pixel
        total = torch.zeros_like(x[:, 0])
        for layer in self.couplings:
            low, high, logdet = layer.with_logdet(low, high)
            total = total + logdet
        return torch.cat([low, high], dim=1).flatten(1), total

    def inverse(self, y: Tensor) -> Tensor:
        """y (n, 2) -> x = g(y) (n, 2)."""
        low, high = y[:, :, None, None].split(1, dim=1)
        for layer in reversed(self.couplings):
            low, high = layer.inverse(low, high)
        return torch.cat([low, high], dim=1).flatten(1)

    def jacobian(self, y: Tensor) -> Tensor:
        """J_g at every y, (n, 2) -> (n, 2, 2)."""
        units = torch.eye(2, dtype=y.dtype)  # one JVP gives the same column for all vectors
        columns = [torch.func.jvp(self.inverse, (y,), (e.expand_as(y),))[1] for e in units]
        return torch.stack(columns, dim=2)

    @property
    def prior(self) -> MixtureSameFamily:
        """p(y₁) and p(y₂)."""
        components = Normal(self.means, self.log_scales.exp())
        return MixtureSameFamily(Categorical(logits=self.logits), components, validate_args=False)

    def bits(self, y: Tensor, step: float) -> Tensor:
        """-log₂ of the prior's mass in the cell of side Δ around y, (n, 2) -> (n,)."""
        mass = self.prior.cdf(y + step / 2) - self.prior.cdf(y - step / 2)
        return -mass.clamp_min(1e-15).log2().sum(1)  # less is lost in the rounding of 1 - 1


def train(source: Banana, lam: float | None = None, steps: int = 600) -> Flow:
    r"""Trains a flow on the source by one of two losses; everything else is the same.

    Likelihood (``lam`` None): :math:`-\log_2 p(f(x)) - \log_2|\det J_f(x)|`.
    Rate-distortion: :math:`R + \lambda D` for noise n uniform in ±1/2 (Δ = 1). R is the bits of
    y + n per vector, D the MSE of g(y + n) per component. Raises AINNError unless λ is positive.
    """
    if lam is not None and lam <= 0:
        raise AINNError(f"λ must be positive, got {lam}")
    noise = torch.Generator().manual_seed(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flow = Flow()
    optimizer = torch.optim.Adam(flow.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps)
    for x in source.sample(steps * 256).split(256):
        y, log_det = flow(x)
        if lam is None:
            loss = -(flow.prior.log_prob(y).sum(1) + log_det).mean() / math.log(2)
        else:
            y = y + torch.rand(y.shape, generator=noise, dtype=y.dtype) - 0.5
            loss = flow.bits(y, 1.0).mean() + lam * (flow.inverse(y) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return flow.requires_grad_(False)


@dataclass(frozen=True)
class OperatingPoint:
    """A flow with real rounding at one step. Four parts in dB add up to ``above``."""

    step: float  #: Δ
    rate: float  #: R, bits per vector
    distortion: float  #: D, MSE per component
    bound: float  #: the least D at this rate, if the rate is high: 2^(h(x) - R) / 12
    unequal: float  #: E‖J_g‖²_F/2 over E|det J_g|: the singular values differ (AM-GM)
    uneven: float  #: E|det J_g| over its geometric mean: the areas of the cells differ
    prior: float  #: R over h(x) + E log₂|det J_f| - 2 log₂ Δ, as distortion: the prior misfits
    remainder: float  #: D over (Δ²/12) E‖J_g‖²_F/2: what the linear prediction misses

    @property
    def above(self) -> float:
        """10 log₁₀(D / bound)."""
        return 10 * math.log10(self.distortion / self.bound)

    def __str__(self) -> str:
        return (f"Δ = {self.step:.3g}: **{self.rate:.2f} bits**, MSE **{self.distortion:.2g}**, "
                f"{self.above:.2f} dB above the bound = {self.unequal:.2f} (unequal σ) "
                f"{self.uneven:+.2f} (uneven cells) {self.prior:+.2f} (prior) "
                f"{self.remainder:+.2f} (remainder)")


def measure(flow: Flow, source: Banana, step: float, count: int = 20000) -> OperatingPoint:
    """Rate and distortion with ŷ = Δ round(y/Δ), on ``count`` vectors that training does not see.

    Raises AINNError unless the step Δ is positive.
    """
    if step <= 0:
        raise AINNError(f"the step must be positive, got {step}")
    x = source.sample(count, HELD_OUT)
    y, log_det = flow(x)
    y_hat = step * torch.round(y / step)
    rate = flow.bits(y_hat, step).mean().item()
    distortion = (flow.inverse(y_hat) - x).square().mean().item()
    squares = flow.jacobian(y).square().sum((1, 2)).mean().item() / 2
    area = (-log_det).exp().mean().item()
    typical_area = (-log_det.mean()).exp().item()
    prior = 2 ** (rate - source.entropy) * typical_area * step**2
    linear = step**2 / 12 * squares
    ratios = (squares / area, area / typical_area, prior, distortion / linear)
    bound = 2 ** (source.entropy - rate) / 12
    return OperatingPoint(step, rate, distortion, bound, *(10 * math.log10(r) for r in ratios))


def cells(flow: Flow, source: Banana, step: float,
          ax: Axes | None = None) -> tuple[Figure, OperatingPoint]:
    """Draws the cells of 2000 vectors in source space, coloured by σ₁/σ₂ of J_g at the centres."""
    ax = ax or plt.subplots(figsize=(5.5, 4), layout="constrained")[1]
    numbers, x = measure(flow, source, step), source.sample(2000, HELD_OUT)
    centres = step * torch.unique(torch.round(flow(x)[0] / step), dim=0)
    side = torch.linspace(-0.5, 0.5, 8, dtype=x.dtype)
    end = torch.full_like(side, 0.5)
    once_around = [torch.cat([side, end, -side, -end]), torch.cat([-end, side, end, -side])]
    borders = centres[:, None] + step * torch.stack(once_around, dim=1)
    outlines = flow.inverse(borders.flatten(0, 1)).reshape(borders.shape)
    sigma = torch.linalg.svdvals(flow.jacobian(centres))
    drawn = PolyCollection(outlines.numpy(), array=(sigma[:, 0] / sigma[:, 1]).numpy(),
                           cmap="YlOrRd", norm=LogNorm(1, 16), edgecolors="#555555", linewidths=0.4)
    ax.add_collection(drawn)
    ax.plot(*x.T, ",", color="black")
    ax.grid(False)
    ax.set(aspect="equal", xlim=(-3.6, 3.6), ylim=(-1.6, 4.2),
           title=f"{numbers.rate:.2f} bits, MSE {numbers.distortion:.2g}")
    ax.figure.colorbar(drawn, ax=ax, label="$\\sigma_1/\\sigma_2$ of $J_g$", shrink=0.7,
                       ticks=[1, 2, 4, 8, 16], format="%d")
    return ax.figure, numbers
