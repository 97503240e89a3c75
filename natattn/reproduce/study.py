"""A study: the schema of its file, its arms with their placebos, and the request of `natattn reproduce`.

A study's file leaves out what it does not use. Therefore its fields have defaults, unlike those of a training run.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from natattn.config.base import Name, Settings
from natattn.config.compose import compose, groups, plain_values, quote_paths, validated
from natattn.config.messages import suggestion
from natattn.errors import UserError
from natattn.reproduce.claims import CLAIMS

EVERY = "all"  # studies
SEPARATOR = ":"  # between an arm and its placebo, or the names of a product

BudgetName = Literal["smoke", "cpu", "gpu"]
Overrides = tuple[str, ...]
# A single name stands for a list of one.
Several = Annotated[tuple[str, ...], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
Seeds = Annotated[tuple[int, ...], Field(min_length=1)]
Metric = Literal[
    "final_loss", "test_loss", "test_error", "mean_loss", "steps_to_target", "pattern_divergence", "step_time"
]  # fmt: skip


class Excerpt(Settings):
    """The beginning of a text that the user gives, cut so that it is the same for everybody."""

    of: str
    lines: Annotated[int, Field(ge=1)] | None = None
    bytes: Annotated[int, Field(ge=1)] | None = None


class Repeats(Settings):
    """Lines of random characters, each written twice: a text on which the loss has a plateau and then drops."""

    lines: int = Field(ge=1)
    length: int = Field(ge=1, le=1000)
    seed: int = Field(ge=0)


class CorpusSettings(Settings):
    """One data set of a study.

    Attributes:
        overrides: of `natattn train`; those that name ``files`` are added.
        files: {key of data: source of its text}.
        fingerprint: of the tokens. It identifies published runs if the text is not given, and is checked if it is.
    """

    overrides: Overrides = ()
    files: dict[Literal["train", "validation", "test"], Excerpt | Repeats] = Field(default_factory=dict)
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None


class TuningSettings(Settings):
    """One grid for every arm that is tuned.

    Attributes:
        key: the override that is varied.
        grid: ascending values.
        seeds: disjoint from those of the final table.
        widenings: how many values may be added, one at a time, beyond the edge of a grid at which the best value is.
    """

    key: str = "++optim.learning_rates.hidden"
    grid: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1)
    seeds: Seeds
    widenings: int = Field(default=2, ge=0)

    @model_validator(mode="after")
    def _ascends(self) -> "TuningSettings":
        if list(self.grid) != sorted(set(self.grid)):
            raise ValueError("grid: must ascend, each value once")
        return self


class ArmSettings(Settings):
    """An arm as a study's file declares it.

    Attributes:
        overrides: of `natattn train`.
        tuned: whether the study's grid is searched for it.
        placebos: {name: further overrides}; each is trained at the arm's own tuned value.
        of_run: name of the arm inside runs with two arms; None for the candidate.
        product: dimensions to cross, each {name: overrides}; every combination becomes an arm.
        corpora: the corpora that it is trained on; None for all.
        seeds: of the table; None for the study's.
    """

    overrides: Overrides = ()
    tuned: bool = False
    placebos: dict[Name, Overrides] = Field(default_factory=dict)
    of_run: str | None = None
    product: tuple[dict[Name, Overrides], ...] = ()
    corpora: tuple[Name, ...] | None = None
    seeds: Seeds | None = None

    def at(self, name: str, budget: "BudgetSettings", corpora: Collection[str]) -> "ArmSettings":
        """Return the arm as a budget with these corpora changes it."""
        update: dict[str, object] = {"product": budget.products.get(name, self.product)}
        if budget.seeds is not None:
            update["seeds"] = None
        if self.corpora is not None:  # if the budget has none of them, the arm is trained on the budget's own
            update["corpora"] = tuple(corpus for corpus in self.corpora if corpus in corpora) or None
        return self.model_copy(update=update)


class ComparisonSettings(Settings):
    """A difference arm − baseline, which may bear on a claim.

    Attributes:
        claim: id in the ledger; None for a row that claims nothing.
        metric: quantity that is subtracted, see ``natattn.analysis.differences.PAIRED_QUANTITIES``.
        claimed: side of the threshold on which the claim expects the difference.
        threshold: value that the difference is compared with; 0 unless the claim allows a margin.
        placebos: whether the difference to each placebo of the arm must exclude zero too.
        indifference: in the metric's unit; None for the study's.
        corpora: where it is made; None for all corpora of the arm.
    """

    claim: str | None = None
    arm: str
    baseline: str
    metric: Metric = "final_loss"
    claimed: Literal["below", "above"] = "below"
    threshold: float = 0.0
    placebos: bool = True
    indifference: Annotated[float, Field(ge=0)] | None = None
    corpora: tuple[Name, ...] | None = None

    def among(self, corpora: Collection[str]) -> "ComparisonSettings | None":
        """Return the comparison restricted to these corpora; None if none of its own is among them."""
        if self.corpora is None:
            return self
        left = tuple(corpus for corpus in self.corpora if corpus in corpora)
        return self.model_copy(update={"corpora": left}) if left else None


class AnalysisSettings(Settings):
    """An analysis of finished runs by `natattn analyze`.

    Attributes:
        arms: whose runs are analysed; an arm with a product stands for all of its combinations.
        of: analyse each run by itself (run=), or all runs of a corpus or of the study together (runs=).
        overrides: of `natattn analyze`; they must set ``sections``.
        judges: functions that turn the result into findings, see ``natattn.reproduce.judges.JUDGES``.
        where: the family of models, in words.
    """

    arms: tuple[str, ...] = Field(min_length=1)
    of: Literal["run", "corpus", "study"]
    overrides: Overrides = ()
    judges: tuple[Name, ...]
    where: str


class BudgetSettings(Settings):
    """Changes that a budget makes: further overrides, and replacements for the fields that it names.

    Attributes:
        arms: names of those that are kept; comparisons and analyses without them are dropped.
        products: of arms, in place of their own.
    """

    base: Overrides = ()
    seeds: tuple[int, ...] | None = None
    tuning: TuningSettings | None = None
    corpora: dict[Name, CorpusSettings] | None = None
    arms: tuple[Name, ...] | None = None
    products: dict[Name, tuple[dict[Name, Overrides], ...]] = Field(default_factory=dict)
    analyze: Overrides = ()


class StudySettings(Settings):
    """A study's file.

    Attributes:
        base: overrides that all of its runs share.
        of_budget: overrides of the budget, which take precedence over all others; empty in a file.
        seeds: of the final table.
        metrics: patterns of metrics, besides losses, that a run must have to count as finished.
        target: arm whose tuned final loss is the target of times in the performance profile; None for no profile.
        indifference: δ, the largest difference that counts as none, in nats.
        analyze: overrides that all analyses share.
    """

    name: Annotated[str, Field(pattern=r"^\w+$")]
    title: str
    base: Overrides = ()
    of_budget: Overrides = ()
    seeds: Seeds
    corpora: dict[Name, CorpusSettings] = Field(min_length=1)
    tuning: TuningSettings | None = None
    arms: dict[Name, ArmSettings] = Field(min_length=1)
    metrics: tuple[str, ...] = ()
    comparisons: tuple[ComparisonSettings, ...] = ()
    target: str | None = None
    indifference: float = Field(default=0.01, ge=0)
    analyses: dict[Name, AnalysisSettings] = Field(default_factory=dict)
    analyze: Overrides = ()
    budgets: dict[BudgetName, BudgetSettings]

    @model_validator(mode="after")
    def _is_complete(self) -> "StudySettings":
        for comparison in self.comparisons:
            for corpus in comparison.corpora or ():
                if corpus not in self.corpora:
                    raise ValueError(f"comparisons: no corpus {corpus!r}; valid: {', '.join(self.corpora)}")
        _check_named("corpora", {c for arm in self.arms.values() for c in arm.corpora or ()}, self.corpora)
        arms = {arm for analysis in self.analyses.values() for arm in analysis.arms}
        arms |= {name for budget in self.budgets.values() for name in (*(budget.arms or ()), *budget.products)}
        _check_named("arms", arms, self.arms)
        self._check()
        for budget in self.budgets:
            self.at(budget)._check()
        return self

    def at(self, budget: BudgetName) -> "StudySettings":
        """Return the study as that budget changes it. Seeds of a budget also replace those of single arms."""
        changed = self.budgets[budget]
        update: dict[str, object] = {
            key: value for key in ("seeds", "tuning", "corpora") if (value := getattr(changed, key)) is not None
        }
        corpora = self.corpora if changed.corpora is None else changed.corpora
        kept = self.arms if changed.arms is None else {name: self.arms[name] for name in changed.arms}
        update |= {"of_budget": changed.base, "analyze": (*self.analyze, *changed.analyze)}
        update["arms"] = {name: arm.at(name, changed, corpora) for name, arm in kept.items()}
        update["comparisons"] = tuple(
            restricted
            for comparison in self.comparisons
            if {comparison.arm, comparison.baseline} <= set(kept) and (restricted := comparison.among(corpora))
        )
        update["analyses"] = {
            name: analysis for name, analysis in self.analyses.items() if set(analysis.arms) & set(kept)
        }
        update["target"] = self.target if self.target in kept else None
        return self.model_copy(update=update)

    def _check(self) -> None:
        """Check that comparisons name single arms, and that tuning has not seen the seeds of the table."""
        if self.tuning is None and any(arm.tuned for arm in self.arms.values()):
            raise ValueError("tuning: an arm is tuned, but no grid is given")
        of_table = {seed for arm in self.arms.values() for seed in (arm.seeds or self.seeds)}
        if self.tuning is not None and (seen := set(self.tuning.seeds) & of_table):
            raise ValueError(f"tuning.seeds: {sorted(seen)} are also seeds of the final table")
        compared = {arm for comparison in self.comparisons for arm in (comparison.arm, comparison.baseline)}
        if self.target is not None:
            compared.add(self.target)
        if crossed := [name for name in compared if name in self.arms and self.arms[name].product]:
            raise ValueError(f"arms: {crossed[0]} has a product; only a single arm can be compared")
        _check_named("arms", compared, self.arms)
        rows = [
            (comparison.arm, comparison.baseline, comparison.metric, comparison.threshold, corpus)
            for comparison in self.comparisons
            for corpus in comparison.corpora or self.corpora
        ]
        if twice := [row for row in rows if rows.count(row) > 1]:  # one claim's verdict would hide the other's
            raise ValueError("comparisons: {} − {}, {}, is there twice".format(*twice[0]))


def _check_named(what: str, named: Collection[str], existing: Collection[str]) -> None:
    if unknown := set(named) - set(existing):
        raise ValueError(f"{what}: {', '.join(sorted(unknown))} is named but not there")


@dataclass(frozen=True)
class Arm:
    """One arm of a study, after products and placebos are expanded.

    Attributes:
        name: arm, arm:placebo or arm:one:other.
        family: the arm of the study's file that it comes from.
        tuned_as: the arm whose tuned value it trains with: itself, or the arm of a placebo; None if it is not tuned.
        of_run: name inside runs that have two arms; None for the candidate.
        corpora, seeds: those of the table.
        is_placebo: whether it replaces another arm without using what that arm claims to use.
    """

    name: str
    family: str
    overrides: Overrides
    tuned_as: str | None
    of_run: str | None
    corpora: tuple[str, ...]
    seeds: tuple[int, ...]
    is_placebo: bool = False


@dataclass(frozen=True)
class Trial:
    """One run of a study, identified within the study; ``rate`` is the value of the tuned key."""

    corpus: str
    arm: str
    rate: float | None
    seed: int


def arms_of(study: StudySettings) -> dict[str, Arm]:
    """Return every arm by name, in the order of the file, each followed by its placebos."""
    return {arm.name: arm for family, settings in study.arms.items() for arm in _expanded(study, family, settings)}


def _expanded(study: StudySettings, family: str, settings: ArmSettings) -> Iterator[Arm]:
    for chosen in product(*(dimension.items() for dimension in settings.product)):
        name = SEPARATOR.join([family, *(part for part, _ in chosen)])
        overrides = (*settings.overrides, *(text for _, added in chosen for text in added))
        corpora = tuple(corpus for corpus in study.corpora if settings.corpora is None or corpus in settings.corpora)
        tuned_as = name if settings.tuned else None
        arm = Arm(name, family, overrides, tuned_as, settings.of_run, corpora, settings.seeds or study.seeds)
        yield arm
        for placebo, added in settings.placebos.items():
            yield replace(
                arm, name=f"{name}{SEPARATOR}{placebo}", overrides=(*overrides, *added), is_placebo=True
            )  # fmt: skip


def placebos_of(arms: dict[str, Arm], name: str) -> list[str]:
    """Return the names of the arm's placebos."""
    return [arm.name for arm in arms.values() if arm.is_placebo and arm.name.rpartition(SEPARATOR)[0] == name]


def overrides_of(study: StudySettings, arm: Arm, trial: Trial) -> list[str]:
    """Return all overrides of a trial except those that name files."""
    rate = [f"{study.tuning.key}={trial.rate:g}"] if study.tuning is not None and trial.rate is not None else []
    corpus = study.corpora[trial.corpus].overrides
    return [*study.base, *corpus, *arm.overrides, *rate, *study.of_budget, f"seed={trial.seed}"]


class ReproduceSettings(Settings):
    """Configuration of `natattn reproduce` for one study.

    Attributes:
        study: its file.
        wikitext: folder with WikiText-2's valid.txt and test.txt; None shows only what is finished.
        train: false rebuilds the results from finished runs and lists what is missing.
        seeds_together: train runs that differ only in their seed as one computation, if that is known to be faster.
        only: arms and corpora to train now, for a study that is spread over several sittings; empty for all.
        runs: folders, sweeps or globs whose runs count as finished, besides those that were trained here.
        kept: folder of published results, whose runs and analyses count as finished; it may be missing.
        output: folder for runs, analyses and results.
    """

    study: StudySettings
    budget: BudgetName
    runs: Several
    kept: str
    wikitext: str | None
    train: bool
    seeds_together: bool
    only: Several
    output: Annotated[str, Field(min_length=1)]

    @model_validator(mode="after")
    def _has_the_budget(self) -> "ReproduceSettings":
        if self.budget not in self.study.budgets:
            raise ValueError(f"budget={self.budget}: study {self.study.name} has {', '.join(self.study.budgets)}")
        return self


@dataclass(frozen=True)
class Request:
    """One call of `natattn reproduce`.

    Attributes:
        settings: one for each study.
        launcher: overrides that choose and configure Hydra's launcher.
        name: of the folder for the results.
    """

    settings: tuple[ReproduceSettings, ...]
    launcher: tuple[str, ...]
    name: str


def read_arguments(arguments: Sequence[str]) -> Request:
    """Compose a configuration for every study that is named.

    Raises: UserError for an unknown study, key, claim or judge, with the closest match.
    """
    valid = groups()["study"]
    launcher = tuple(argument for argument in arguments if argument.startswith(("hydra/", "hydra.")))
    named = [argument.partition("=")[2] for argument in arguments if argument.startswith("study=")]
    if not named:
        raise UserError(f"study: needs a value; valid: {EVERY}, {', '.join(valid)}")
    names = list(dict.fromkeys(named[-1].strip("[]").split(",")))
    if EVERY in names:
        names = list(valid)
    for name in names:
        if name not in valid:
            raise UserError(f"study={name}: no such option; {suggestion(name, (EVERY, *valid))}")
    others = [argument for argument in arguments if argument not in launcher and not argument.startswith("study=")]
    settings = []
    for name in names:
        composed = plain_values(compose([f"study={name}", *quote_paths(others)], "reproduce"))
        if len(names) == len(valid) > 1 and composed["budget"] not in composed["study"].get("budgets", {}):
            continue  # study=all means every study that has the budget
        settings.append(validated(composed, ReproduceSettings))
        _check_claims_and_judges(settings[-1].study)
    if not settings:
        raise UserError(f"study={named[-1]}: none has this budget")
    title = EVERY if set(names) == set(valid) else "_".join(names)
    return Request(tuple(settings), launcher, f"{title}_{settings[0].budget}")


def _check_claims_and_judges(study: StudySettings) -> None:
    from natattn.reproduce.judges import JUDGES

    for claim in (comparison.claim for comparison in study.comparisons):
        if claim is not None and claim not in CLAIMS:
            raise UserError(f"study={study.name}: claim {claim}: not in the ledger; {suggestion(claim, list(CLAIMS))}")
    for judge in (judge for analysis in study.analyses.values() for judge in analysis.judges):
        if judge not in JUDGES:
            raise UserError(f"study={study.name}: judge {judge}: no such judge; {suggestion(judge, list(JUDGES))}")
