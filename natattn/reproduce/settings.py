"""The schema of `natattn reproduce` and of a study's file: what is trained, compared, analysed and claimed.

A study's file leaves out what it does not use, so that its fields have defaults, unlike those of a training run.
"""

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from natattn.config.base import Name, Settings

BudgetName = Literal["smoke", "cpu", "gpu"]
Overrides = tuple[str, ...]
# One name stands for a list of one.
Several = Annotated[tuple[str, ...], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
Metric = Literal[
    "final_loss", "test_loss", "test_error", "mean_loss", "steps_to_target", "pattern_divergence", "step_time"
]  # fmt: skip


class Excerpt(Settings):
    """The beginning of a text that the user gives, so that everyone's is the same."""

    of: str
    lines: Annotated[int, Field(ge=1)] | None = None
    bytes: Annotated[int, Field(ge=1)] | None = None


class Repeats(Settings):
    """Lines of random characters, each written twice: text whose loss stands still and then drops."""

    lines: int = Field(ge=1)
    length: int = Field(ge=1, le=1000)
    seed: int = Field(ge=0)


class CorpusSettings(Settings):
    """One data set of a study.

    Attributes:
        overrides: of `natattn train`; those that name the files below are added.
        files: {key of data: where its text comes from}.
        fingerprint: of the tokens, so that kept runs are found where the text is not given; checked where it is.
    """

    overrides: Overrides = ()
    files: dict[Literal["train", "validation", "test"], Excerpt | Repeats] = Field(default_factory=dict)
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None


class TuningSettings(Settings):
    """One grid for every arm that is tuned.

    Attributes:
        key: the override that is varied.
        grid: ascending.
        seeds: that the final table does not use.
        widenings: how often a grid whose winner is at its edge gets one more value there.
    """

    key: str = "++optim.learning_rates.hidden"
    grid: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field(min_length=1)
    widenings: int = Field(default=2, ge=0)

    @model_validator(mode="after")
    def _ascends(self) -> "TuningSettings":
        if list(self.grid) != sorted(set(self.grid)):
            raise ValueError("grid: must ascend, each value once")
        return self


class ArmSettings(Settings):
    """What is trained and compared.

    Attributes:
        overrides: of `natattn train`.
        tuned: whether the study's grid is searched for it.
        placebos: {name: further overrides}; each is trained at the arm's own tuned value.
        of_run: name of the arm inside runs that have two; None for the candidate.
        product: dimensions to cross, each {name: overrides}; the arm becomes one for every combination.
        corpora: the corpora that it is trained on; None for all.
        seeds: of the table; None for the study's.
    """

    overrides: Overrides = ()
    tuned: bool = False
    placebos: dict[Name, Overrides] = Field(default_factory=dict)
    of_run: str | None = None
    product: tuple[dict[Name, Overrides], ...] = ()
    corpora: tuple[Name, ...] | None = None
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] | None = None


class ComparisonSettings(Settings):
    """A difference arm − baseline that bears on a claim.

    Attributes:
        claim: id in the ledger; None for a row that claims nothing.
        metric: what is subtracted, see ``natattn.analysis.differences.PAIRED_QUANTITIES``.
        claimed: where the claim says that the difference is.
        threshold: what the difference is measured against; 0 unless the claim allows something.
        placebos: whether the difference to each placebo of the arm must exclude zero too.
        indifference: in the metric's unit; None for the study's.
        corpora: where it is made; None for all that the arm is trained on.
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
        """The same where a budget has these corpora alone; None where it has none of its own."""
        if self.corpora is None:
            return self
        left = tuple(corpus for corpus in self.corpora if corpus in corpora)
        return self.model_copy(update={"corpora": left}) if left else None


class AnalysisSettings(Settings):
    """An analysis of finished runs, as `natattn analyze` makes it.

    Attributes:
        arms: whose runs; an arm with a product stands for all of its combinations.
        of: each run by itself (run=), or all runs of a corpus or of the study together (runs=).
        overrides: of `natattn analyze`; ``sections`` must be among them.
        judges: what reads the result, see ``judges.JUDGES``.
        where: the family of models, in words.
    """

    arms: tuple[str, ...] = Field(min_length=1)
    of: Literal["run", "corpus", "study"]
    overrides: Overrides = ()
    judges: tuple[Name, ...]
    where: str


class BudgetSettings(Settings):
    """What a budget changes: more overrides, and other values of what it names.

    Attributes:
        arms: names of those that are kept; comparisons and analyses without them fall away.
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
        of_budget: those of the budget, which win over all others; empty in a file.
        seeds: of the final table.
        metrics: patterns of metrics that a run must have to count, beside the losses.
        target: the arm whose tuned final loss is the target of times, for the performance profile; None for none.
        indifference: δ of protocol 7.
        analyze: overrides that all analyses share.
    """

    name: Annotated[str, Field(pattern=r"^\w+$")]
    title: str
    base: Overrides = ()
    of_budget: Overrides = ()
    seeds: tuple[int, ...] = Field(min_length=1)
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
    def _is_whole(self) -> "StudySettings":
        for comparison in self.comparisons:
            for corpus in comparison.corpora or ():
                if corpus not in self.corpora:
                    raise ValueError(f"comparisons: no corpus {corpus!r}; valid: {', '.join(self.corpora)}")
        named = {arm for analysis in self.analyses.values() for arm in analysis.arms}
        named |= {name for budget in self.budgets.values() for name in (*(budget.arms or ()), *budget.products)}
        if unknown := named - set(self.arms):
            raise ValueError(f"arms: {', '.join(sorted(unknown))} is named but not there")
        if unknown := {corpus for arm in self.arms.values() for corpus in arm.corpora or ()} - set(self.corpora):
            raise ValueError(f"corpora: {', '.join(sorted(unknown))} is named but not there")
        self._check()
        for budget in self.budgets:
            self.at(budget)._check()
        return self

    def at(self, budget: BudgetName) -> "StudySettings":
        """The study as that budget changes it. Seeds of a budget replace those of single arms too."""
        changed = self.budgets[budget]
        update: dict[str, object] = {
            key: value for key in ("seeds", "tuning", "corpora") if (value := getattr(changed, key)) is not None
        }
        update |= {"of_budget": changed.base, "analyze": (*self.analyze, *changed.analyze)}
        corpora = self.corpora if changed.corpora is None else changed.corpora
        kept = self.arms if changed.arms is None else {name: self.arms[name] for name in changed.arms}
        update["arms"] = {name: _arm_at(name, arm, changed, corpora) for name, arm in kept.items()}
        update["comparisons"] = tuple(
            c for each in self.comparisons if {each.arm, each.baseline} <= set(kept) and (c := each.among(corpora))
        )
        update["analyses"] = {name: found for name, found in self.analyses.items() if set(found.arms) & set(kept)}
        update["target"] = self.target if self.target in kept else None
        return self.model_copy(update=update)

    def _check(self) -> None:
        """Names refer to what is there, and tuning has not seen the seeds of the table."""
        if self.tuning is None and any(arm.tuned for arm in self.arms.values()):
            raise ValueError("tuning: an arm is tuned, but no grid is given")
        of_table = {seed for arm in self.arms.values() for seed in (arm.seeds or self.seeds)}
        if self.tuning is not None and (seen := set(self.tuning.seeds) & of_table):
            raise ValueError(f"tuning.seeds: {sorted(seen)} are also seeds of the final table")
        named = {arm for comparison in self.comparisons for arm in (comparison.arm, comparison.baseline)}
        if self.target is not None:
            named.add(self.target)
        if crossed := [name for name in named if name in self.arms and self.arms[name].product]:
            raise ValueError(f"arms: {crossed[0]} has a product; only a single arm can be compared")
        if unknown := named - set(self.arms):
            raise ValueError(f"arms: {', '.join(sorted(unknown))} is named but not there")
        rows = [
            (c.arm, c.baseline, c.metric, c.threshold, corpus)
            for c in self.comparisons for corpus in c.corpora or self.corpora
        ]  # fmt: skip
        if twice := [row for row in rows if rows.count(row) > 1]:  # one claim's verdict would hide the other's
            raise ValueError("comparisons: {} − {}, {}, is there twice".format(*twice[0]))


def _arm_at(name: str, arm: ArmSettings, changed: BudgetSettings, corpora: Collection[str]) -> ArmSettings:
    """An arm as a budget with these corpora changes it."""
    update: dict[str, object] = {"product": changed.products.get(name, arm.product)}
    if changed.seeds is not None:
        update["seeds"] = None
    if arm.corpora is not None:  # a budget that has not that corpus trains the arm on what it has
        update["corpora"] = tuple(corpus for corpus in arm.corpora if corpus in corpora) or None
    return arm.model_copy(update=update)


class ReproduceSettings(Settings):
    """What `natattn reproduce` composes, for one study.

    Attributes:
        study: its file.
        runs: folders, sweeps or globs whose runs count as done, beside those that were trained here.
        kept: folder of published results: runs/ and analyses/ in it count as done; missing is none.
        wikitext: folder with WikiText-2's valid.txt and test.txt; None: only what is done can be shown.
        seeds_together: train runs that differ in their seed alone as one computation, where that is known to be faster.
        train: false rebuilds from what is done and lists what is missing.
        only: arms and corpora to train now, for a study that is spread over several sittings; empty for all.
        output: folder for the results.
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
            there = ", ".join(self.study.budgets)
            raise ValueError(f"budget={self.budget}: study {self.study.name} has {there}")
        return self
