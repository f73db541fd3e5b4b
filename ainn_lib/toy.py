"""Rate-distortion against likelihood in the plane: a source whose entropy is known, and a flow that trains in seconds.

The components of a vector stand for A-INN's two branches, one channel each: the flow is made of the library's `Coupling`.
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

from .errors import AINNError
from .invertible import Coupling


@dataclass(frozen=True)
class Banana:
    r"""A bent Gaussian: :math:`x = (a,\; b + c\,(a^2 - \sigma_a^2))` with independent Gaussians a, b of deviation σ_a, σ_b.

    The bend is a shear of determinant 1 and moves no entropy: :math:`h(x) = h(a) + h(b) = \log_2(2\pi e\,\sigma_a\sigma_b)`.

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
        a, b = torch.randn(2, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        a, b = a * self.sigma_a, b * self.sigma_b
        return torch.stack([a, b + self.bend * (a**2 - self.sigma_a**2)], dim=1)

    def log2_density(self, x: Tensor) -> Tensor:
        """log₂ p(x), (n, 2) -> (n,)."""
        a, b = x[:, 0], x[:, 1] - self.bend * (x[:, 0] ** 2 - self.sigma_a**2)
        return (Normal(0.0, self.sigma_a).log_prob(a) + Normal(0.0, self.sigma_b).log_prob(b)) / math.log(2)


class Flow(nn.Module):
    """A bijection f of the plane with inverse g: coupling layers; and a prior of y = f(x), one Gaussian mixture a component.

    Its nets have tanh in place of LeakyReLU, so g is smooth. A fresh flow is the identity; everything is float64.
    """

    def __init__(self, couplings: int = 4, hidden: int = 24, mixture: int = 4):
        super().__init__()
        self.couplings = nn.ModuleList(Coupling(1, hidden, 1, clamp=2.0, shared=True) for _ in range(couplings))
        for half in (half for layer in self.couplings for half in (layer.from_a, layer.from_b)):
            convs = nn.Conv2d(1, hidden, 1), nn.Conv2d(hidden, hidden, 1), nn.Conv2d(hidden, 2, 1)
            half.net = nn.Sequential(convs[0], nn.Tanh(), convs[1], nn.Tanh(), convs[2])
            nn.init.zeros_(convs[2].weight)
            nn.init.zeros_(convs[2].bias)
        self.logits = nn.Parameter(torch.zeros(2, mixture))
        self.means = nn.Parameter(torch.linspace(-1, 1, mixture).repeat(2, 1))
        self.log_scales = nn.Parameter(torch.zeros(2, mixture))
        self.double()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (n, 2) -> y = f(x) (n, 2) and ln|det J_f(x)| (n,), the sum of all log scales."""
        a, b = x.T[:, None, None, :, None]  # n vectors are n pixels of two images of one channel
        log_det = torch.zeros_like(a)
        for layer in self.couplings:  # `Coupling.forward` does the same, but keeps its log scales to itself
            log_scale_a, shift = layer.from_b(b)
            a = a * log_scale_a.exp() + shift
            log_scale_b, shift = layer.from_a(a)
            b = b * log_scale_b.exp() + shift
            log_det = log_det + log_scale_a + log_scale_b
        return torch.stack([a.flatten(), b.flatten()], dim=1), log_det.flatten()

    def inverse(self, y: Tensor) -> Tensor:
        """y (n, 2) -> x = g(y) (n, 2)."""
        a, b = y.T[:, None, None, :, None]
        for layer in reversed(self.couplings):
            a, b = layer.inverse(a, b)
        return torch.stack([a.flatten(), b.flatten()], dim=1)

    def jacobian(self, y: Tensor) -> Tensor:
        """J_g at every y, (n, 2) -> (n, 2, 2). Vectors do not see each other, so one JVP gives a column of all of them."""
        columns = [torch.func.jvp(self.inverse, (y,), (e.expand_as(y),))[1] for e in torch.eye(2, dtype=y.dtype)]
        return torch.stack(columns, dim=2)

    @property
    def prior(self) -> MixtureSameFamily:
        """p(y₁) and p(y₂)."""
        components = Normal(self.means, self.log_scales.exp())
        return MixtureSameFamily(Categorical(logits=self.logits), components, validate_args=False)

    def bits(self, y: Tensor, step: float) -> Tensor:
        """What an ideal coder spends: -log₂ of the prior's mass in the cell of side Δ around y, (n, 2) -> (n,)."""
        mass = self.prior.cdf(y + step / 2) - self.prior.cdf(y - step / 2)
        return -mass.clamp_min(1e-15).log2().sum(1)  # less than that is lost in the rounding of 1 - 1


def train(source: Banana, lam: float | None = None, steps: int = 600, batch: int = 256, seed: int = 0) -> Flow:
    r"""A flow trained on the source by one of two losses; all else is the same.

    Likelihood (``lam`` None): :math:`-\log_2 p(f(x)) - \log_2|\det J_f(x)|`.
    Rate-distortion: :math:`\mathcal{L} = R + \lambda D` with noise n uniform in ±1/2 (Δ = 1),
    R the bits of y + n per vector, D the MSE of g(y + n) per component.

    Raises:
        AINNError: when λ is not positive.
    """
    if lam is not None and lam <= 0:
        raise AINNError(f"λ must be positive, got {lam}")
    noise = torch.Generator().manual_seed(seed + 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        flow = Flow()
    optimizer = torch.optim.Adam(flow.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps)
    for x in source.sample(steps * batch, seed).split(batch):
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
    """What a flow with real rounding costs at one step, and its distance from the high-rate bound: four parts in dB."""

    step: float  #: Δ
    rate: float  #: R, bits per vector
    distortion: float  #: D, MSE per component
    bound: float  #: on D at this rate, 2^(h(x) - R) / 12
    unequal: float  #: AM-GM, E‖J_g‖²_F/2 against E|det J_g|: singular values differ
    uneven: float  #: E|det J_g| against its geometric mean: cells differ in area from place to place
    prior: float  #: R against h(x) + E log₂|det J_f| - 2 log₂ Δ, in dB of distortion: the prior does not fit
    remainder: float  #: D against (Δ²/12) E‖J_g‖²_F/2: what the linear prediction misses

    @property
    def above(self) -> float:
        """10 log₁₀(D / bound), equal to the sum of the four parts."""
        return 10 * math.log10(self.distortion / self.bound)

    def __str__(self) -> str:
        return (f"Δ = {self.step:.3g}: **{self.rate:.2f} bits**, MSE **{self.distortion:.2g}**, {self.above:.2f} dB above "
                f"the bound = {self.unequal:.2f} (unequal σ) {self.uneven:+.2f} (uneven cells) {self.prior:+.2f} (prior) "
                f"{self.remainder:+.2f} (remainder)")


def measure(flow: Flow, source: Banana, step: float, count: int = 20000) -> OperatingPoint:
    """Rate and distortion with ŷ = Δ round(y/Δ), measured on ``count`` vectors that training did not see.

    Raises:
        AINNError: when the step is not positive.
    """
    if step <= 0:
        raise AINNError(f"the step must be positive, got {step}")
    x = source.sample(count, seed=10**6)
    y, log_det = flow(x)
    y_hat = step * torch.round(y / step)
    rate, distortion = flow.bits(y_hat, step).mean().item(), (flow.inverse(y_hat) - x).square().mean().item()
    squares, area = flow.jacobian(y).square().sum((1, 2)).mean().item() / 2, (-log_det).exp().mean().item()
    typical_area = (-log_det.mean()).exp().item()
    prior = 2 ** (rate - source.entropy) * typical_area * step**2
    ratios = squares / area, area / typical_area, prior, 12 * distortion / (step**2 * squares)
    return OperatingPoint(step, rate, distortion, 2 ** (source.entropy - rate) / 12,
                          *(10 * math.log10(ratio) for ratio in ratios))


def cells(flow: Flow, source: Banana, step: float, ax: Axes | None = None) -> tuple[Figure, OperatingPoint]:
    """The cells that 2000 vectors fall into, drawn in source space and coloured by σ₁/σ₂ of J_g at their centres."""
    ax = ax or plt.subplots(figsize=(5.5, 4), layout="constrained")[1]
    numbers, x = measure(flow, source, step), source.sample(2000, seed=10**6)
    centres = step * torch.unique(torch.round(flow(x)[0] / step), dim=0)
    side = torch.linspace(-0.5, 0.5, 8, dtype=x.dtype)
    end = torch.full_like(side, 0.5)
    border = torch.stack([torch.cat([side, end, -side, -end]), torch.cat([-end, side, end, -side])], dim=1)  # once around
    outlines = flow.inverse((centres[:, None] + step * border).reshape(-1, 2)).reshape(len(centres), -1, 2)
    sigma = torch.linalg.svdvals(flow.jacobian(centres))
    drawn = PolyCollection(outlines.numpy(), array=(sigma[:, 0] / sigma[:, 1]).numpy(), cmap="YlOrRd", norm=LogNorm(1, 16),
                           edgecolors="#555555", linewidths=0.4)
    ax.add_collection(drawn)
    ax.plot(*x.T, ",", color="black")
    ax.grid(False)
    ax.set(aspect="equal", xlim=(-3.6, 3.6), ylim=(-1.6, 4.2),
           title=f"{numbers.rate:.2f} bits, MSE {numbers.distortion:.2g}")
    ax.figure.colorbar(drawn, ax=ax, label="$\\sigma_1/\\sigma_2$ of $J_g$", shrink=0.7, ticks=[1, 2, 4, 8, 16], format="%d")
    return ax.figure, numbers
