"""Parts of an ablation, and which trainings its rows share."""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from ddcap.errors import RecipeError
from ddcap.recipe import Recipe, load_recipe
from ddcap.settings import DecodingSettings, dump_settings, parse_settings

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=_STRICT)
class TrainingSweep:
    """Trainings that differ in one setting: a row's recipe, `overrides` for all and more for every point."""

    row: str
    points: dict[str, list[str]]
    overrides: list[str] = Field(default_factory=list)


@dataclass(frozen=True, config=_STRICT)
class InfillingPlan:
    """Shares of a human caption's words to mask."""

    shares: list[float] = Field(default_factory=lambda: [0.25, 0.5, 0.75])
    seed: int = 0


@dataclass(frozen=True, config=_STRICT)
class CurvesPlan:
    """Rows with their seeds, each trained on every share of the images, with more overrides for each."""

    rows: dict[str, list[int]]
    shares: dict[str, list[str]]


@dataclass(frozen=True, config=_STRICT)
class PlanFile:
    """Contents of `plan.yaml`; rows are named after recipes beside it, `twin` is autoregressive.yaml."""

    rows: dict[str, list[int]] = Field(default_factory=dict)
    base: str | None = None  # what the rows' recipes extend, in place of their own; beside the plan
    split: Literal["val", "test"] = "test"  # rows and infilling are scored on it
    beams: int = Field(default=3, ge=2)
    decoding_sweeps: dict[str, list[float]] = Field(default_factory=dict)
    training_sweeps: dict[str, TrainingSweep] = Field(default_factory=dict)
    infilling: InfillingPlan = Field(default_factory=InfillingPlan)
    # [better, worse, what makes the difference], judged beside the paper's claims; "twin_beams" is a row, too
    claims: list[tuple[str, str, str]] = Field(default_factory=list)
    curves: CurvesPlan | None = None


@plain_dataclass(frozen=True)
class Trial:
    """One recipe to be trained from one seed and scored.

    Attributes:
        name: the row's name, or "sweep-point".
        seed: of the training.
        recipe: with seed and output folder filled in.
        chosen_by: the decoding that validates the training, and so chooses its weights; that of the trial
            which the training's folder is named after.
    """

    name: str
    seed: int
    recipe: Recipe
    chosen_by: DecodingSettings | None = None

    @property
    def label(self) -> str:
        """Name and seed; files are named by it."""
        return f"{self.name}-seed{self.seed}"


@plain_dataclass(frozen=True)
class Plan:
    """A plan with its recipes read.

    Attributes:
        file: what `plan.yaml` says.
        rows: every row from each of its seeds.
        sweeps: per training sweep its points, all from the first seed of the sweep's row.
        curves: per share of the training images its trainings, named "row-share".
    """

    file: PlanFile
    rows: tuple[Trial, ...]
    sweeps: dict[str, tuple[Trial, ...]]
    curves: dict[str, tuple[Trial, ...]]

    @property
    def trials(self) -> list[Trial]:
        """All of them; some share a training."""
        groups = [*self.sweeps.values(), *self.curves.values()]
        return [*self.rows, *(one for trials in groups for one in trials)]

    def named(self, name: str) -> list[Trial]:
        """The trials of one row."""
        return [trial for trial in self.rows if trial.name == name]


def load_plan(path: str | Path, output: str | Path, overrides: list[str] | None = None) -> Plan:
    """Read a plan and the recipes it names.

    Trials whose recipes differ only in decoding get one training folder, named after the last of them (whose
    decoding validates it).

    Args:
        path: the plan; a row `f` is the recipe `f.yaml` beside it, the row `twin` is `autoregressive.yaml`.
        output: folder of the ablation; trainings go into its `trainings/`.
        overrides: dotted overrides for every recipe.

    Raises:
        RecipeError: if the plan or a recipe is missing or wrong.
    """
    path, overrides = Path(path), overrides or []
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}); give an ablation plan") from None
    except yaml.YAMLError as error:
        raise RecipeError(
            f"{path}: not valid YAML ({' '.join(str(error).split())}); correct the file"
        ) from None
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: holds no plan; compare it with recipes/ablation/plan.yaml")
    file: PlanFile = parse_settings(PlanFile, values, str(path))
    curves = file.curves or CurvesPlan({}, {})
    if not (file.rows or curves.rows) or not all([*file.rows.values(), *curves.rows.values()]):
        raise RecipeError(f"{path}: rows need names and at least one seed each, for instance f: [0]")
    if file.decoding_sweeps and "g" not in file.rows:
        raise RecipeError(f"{path}: decoding_sweeps vary row g, which is not in rows; add it")

    def trial(name: str, row: str, seed: int, changes: list[str]) -> Trial:
        base = path.parent / file.base if file.base is not None else None
        beside = path.parent / f"{row}.yaml"
        if row == "twin" and not beside.exists():  # the row has the name of stored results
            beside = path.parent / "autoregressive.yaml"
        recipe = load_recipe(beside, [*changes, *overrides], base=base)
        return Trial(name, seed, replace(recipe, training=replace(recipe.training, seed=seed)))

    rows = [trial(name, name, seed, []) for name, seeds in file.rows.items() for seed in seeds]
    _check_claims(path, file)
    sweeps = {}
    for name, sweep in file.training_sweeps.items():
        if sweep.row not in file.rows:
            raise RecipeError(f"{path}: sweep {name!r} starts from row {sweep.row!r}, which is not in rows")
        seed = file.rows[sweep.row][0]
        sweeps[name] = [
            trial(f"{name}-{point}", sweep.row, seed, [*sweep.overrides, *changes])
            for point, changes in sweep.points.items()
        ]
    of_shares = {
        share: tuple(
            trial(f"{row}-{share}", row, seed, [f"data.train_share={share}", *changes])
            for row, seeds in curves.rows.items()
            for seed in seeds
        )
        for share, changes in curves.shares.items()
    }
    everything = Plan(
        file, tuple(rows), {name: tuple(trials) for name, trials in sweeps.items()}, of_shares
    ).trials
    named_after = {repr(training_settings(one.recipe)): one for one in everything}  # the last one of each

    def placed(one: Trial) -> Trial:
        last = named_after[repr(training_settings(one.recipe))]
        training = replace(one.recipe.training, output=str(Path(output) / "trainings" / last.label))
        recipe = replace(one.recipe, training=training)
        return replace(one, recipe=recipe, chosen_by=last.recipe.decoding)

    return Plan(
        file,
        tuple(placed(one) for one in rows),
        {name: tuple(placed(one) for one in trials) for name, trials in sweeps.items()},
        {share: tuple(placed(one) for one in trials) for share, trials in of_shares.items()},
    )


def _check_claims(path: Path, file: PlanFile) -> None:
    """Check that the rows of every claim are two of the plan's."""
    known = [*file.rows, *(["twin_beams"] if "twin" in file.rows else [])]
    for better, worse, _ in file.claims:
        for row in (better, worse):
            if row not in known:
                raise RecipeError(
                    f"{path}: claim [{better}, {worse}] names row {row!r}; use {', '.join(known)}"
                )
        if better == worse:
            raise RecipeError(f"{path}: claim [{better}, {worse}] compares a row with itself; name two rows")


def training_settings(recipe: Recipe) -> dict[str, Any]:
    """Return what decides a training's weights, as plain values, equal for recipes of the same model."""
    values = dump_settings(recipe)
    del values["decoding"]
    for name in ("output", "log_every", "wandb", "checkpoint_every", "keep_checkpoints"):
        del values["training"][name]
    return values
