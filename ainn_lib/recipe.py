"""How a training run goes: `Recipe`, its learning-rate schedule, and recipe files such as ``data/recipes/paper.json``."""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

from .errors import AINNError

SCHEDULES = ("cosine", "drops")
PARTS = ("all", "entropy")
DROP = 0.3  # factor on the learning rate at every drop


@dataclass(frozen=True)
class Recipe:
    """How a run goes. Everything random in it follows from ``seed``.

    Raises:
        AINNError: at construction, with one sentence that names the field, for values that make no sense.

    >>> Recipe(steps=10, patch=100)
    Traceback (most recent call last):
    ...
    ainn_lib.errors.AINNError: patch must be a multiple of 64, got 100
    """

    steps: int | None = None  #: None: as many as fit into ``minutes``; the run fixes the number once
    minutes: float | None = None
    batch: int = 4  #: of all devices together
    patch: int = 128  #: side of the square crops, a multiple of 64
    lr: float = 5e-4  #: of the transform
    entropy_lr: float = 1e-3  #: of entropy model and gains
    schedule: str = "cosine"  #: cosine, or drops: a factor of 0.3 at each part of the steps in ``drops``
    hold: float = 0.3  #: part of the steps before the cosine decay begins
    drops: tuple[float, ...] = ()
    warmup: int = 100
    clip: float = 1.0  #: largest gradient norm
    lam: float | None = None  #: λ of a fixed-rate network; None: all rates
    only: str = "all"  #: all, or entropy: the entropy model learns alone, from the rate, behind a transform that stands still
    seed: int = 0
    validate_every: int = 500
    save_every: int = 100

    def __post_init__(self):
        def need(ok: bool, name: str, what: str) -> None:
            if not ok:
                raise AINNError(f"{name} must be {what}, got {getattr(self, name)!r}")

        if isinstance(self.drops, list):  # from JSON
            object.__setattr__(self, "drops", tuple(self.drops))
        for name, least in (("steps", 1), ("batch", 1), ("patch", 1), ("warmup", 0), ("seed", 0), ("validate_every", 1),
                            ("save_every", 1)):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            need(whole and value >= least or name == "steps" and value is None, name, f"a whole number of at least {least}")
        need(self.patch % 64 == 0, "patch", "a multiple of 64")
        for name in ("lr", "entropy_lr", "clip", "lam", "minutes"):
            value = getattr(self, name)
            optional = name in ("lam", "minutes") and value is None
            need(optional or _number(value) and 0 < value < math.inf, name, "a number above 0")
        need(_number(self.hold) and 0 <= self.hold <= 1, "hold", "a part of the steps, from 0 to 1")
        need(self.only in PARTS, "only", " or ".join(PARTS))
        need(self.schedule in SCHEDULES, "schedule", " or ".join(SCHEDULES))
        need(isinstance(self.drops, tuple) and all(_number(d) and 0 < d < 1 for d in self.drops)
             and list(self.drops) == sorted(set(self.drops)), "drops", "rising parts of the steps between 0 and 1")


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def learning_rate(recipe: Recipe, step: int) -> float:
    r"""Factor on the learning rates at a step: linear warm-up, then constant, and in the end a cosine to 1 % or drops,
    :math:`0.3^{k}` behind the k-th.

    >>> recipe = Recipe(steps=100, warmup=0, schedule="drops", drops=(0.5, 0.9))
    >>> [round(learning_rate(recipe, step), 2) for step in (0, 49, 50, 90)]
    [1.0, 1.0, 0.3, 0.09]
    """
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    if recipe.schedule == "drops":
        return DROP ** sum(step >= part * recipe.steps for part in recipe.drops)
    hold = int(recipe.hold * recipe.steps)
    if step < hold:
        return 1.0
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - hold) / max(1, recipe.steps - hold)))


@dataclass(frozen=True)
class RecipeFile:
    """What a recipe file says: a preset, changes to its configuration, one λ for each quality, the fields of `Recipe`."""

    preset: str = "tiny"
    config: dict = dataclasses.field(default_factory=dict)
    lambdas: tuple[float, ...] = ()  #: of fixed-rate networks, one for each quality from 1 on
    training: dict = dataclasses.field(default_factory=dict)
    about: dict = dataclasses.field(default_factory=dict)  #: for the reader

    def recipe(self, lam: float | None = None, quality: int | None = None, **changes) -> Recipe:
        """The `Recipe` with changes; a new ``lr`` keeps its ratio to ``entropy_lr``, and minutes take the place of steps.

        Raises:
            AINNError: as `Recipe` does, or where a quality is not among those of the file, or one has to be chosen.

        >>> RecipeFile(training={"steps": 9}).recipe(lr=1e-4).entropy_lr
        0.0002
        """
        count = len(self.lambdas)
        if lam is None and quality is not None and not 1 <= quality <= count:
            raise AINNError(f"the recipe has λ for the qualities 1 to {count}" if count else
                            "without a recipe that lists λ by quality, --lambda chooses the rate")
        if lam is None and quality is None and count:
            raise AINNError(f"the recipe is for networks of one rate: choose --quality 1 to {count} or --lambda")
        base = Recipe(**self.training)
        changes["lam"] = self.lambdas[quality - 1] if quality is not None else base.lam if lam is None else lam
        if "minutes" in changes:
            changes["steps"] = None
        elif "steps" in changes:
            changes["minutes"] = None
        new = dataclasses.replace(base, **changes)
        return new if "entropy_lr" in changes else dataclasses.replace(new, entropy_lr=base.entropy_lr * (new.lr / base.lr))


def read_recipe(path: str | Path) -> RecipeFile:
    """A recipe file, JSON with the fields of `RecipeFile`.

    Raises:
        AINNError: when it is missing, no JSON, or has fields that are unknown.
    """
    try:
        facts = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise AINNError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise AINNError(f"{path} is no JSON: {error}") from None
    kinds = {"preset": str, "config": dict, "lambdas": list, "training": dict, "about": dict}
    if not isinstance(facts, dict) or any(not isinstance(value, kinds.get(key, ())) for key, value in facts.items()):
        raise AINNError(f"{path} is no recipe: it may hold {', '.join(kinds)}, each of its own kind")
    if unknown := sorted(set(facts.get("training", {})) - {field.name for field in dataclasses.fields(Recipe)}):
        raise AINNError(f"{path}: a recipe has no field {', '.join(unknown)}")
    return RecipeFile(**{**facts, "lambdas": tuple(facts.get("lambdas", ()))})
