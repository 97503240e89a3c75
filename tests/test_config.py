"""From overrides to settings, and the one line that each kind of wrong input gets."""

import shutil

import pytest

from natattn.config.compose import description, groups, quote_paths, sweep_jobs, train_groups
from natattn.errors import UserError
from natattn.storage.atomic import conf_folder
from natattn.training.settings import compose_run


def _settings(*overrides: str):
    return compose_run(quote_paths(overrides))


def test_defaults_are_those_the_readme_states():
    settings = _settings()
    assert (settings.model.name, settings.optim.name, settings.reference.name) == ("natural", "aif", "adamw")
    assert (settings.size.n_layer, settings.size.n_embd, settings.size.n_head, settings.size.context) == (
        4,
        128,
        4,
        128,
    )
    assert (settings.data.kind, settings.tokenizer.kind, settings.tokenizer.vocab_size) == ("stdlib", "bpe", 4096)


def options_of(groups):
    return [(group, option) for group, options in groups.items() for option in options]


@pytest.mark.parametrize(("group", "option"), options_of(train_groups()))
def test_every_option_composes_into_valid_settings(group, option):
    needs = {("data", "text"): ["data.train=x.txt"], ("init", "pretrained"): ["init.path=x"]}
    needs |= {("model", "standard"): ["optim=adamw"], ("tokenizer", "pretrained"): ["init=pretrained", "init.path=x"]}
    needs |= {("model", "tempered_per_head"): ["model.attention.temperature.values=[1,1,2,2]"]}
    needs |= {("size", "pretrained"): ["init=pretrained", "init.path=x"]}
    needs |= {("data", option): ["task=vision"] for option in ("digits", "cifar10")}
    needs |= {("data", "image_folder"): ["task=vision", "data.train=x"]}
    needs |= {("data", "image_dataset"): ["task=vision", "data.dataset=x"]}
    needs |= {("data", option): ["task=multimodal"] for option in ("digit_scenes", "flickr8k")}
    needs |= {("data", "captions"): ["task=multimodal", "data.train=x.jsonl"]}
    needs |= {("data", "caption_dataset"): ["task=multimodal", "data.dataset=x"]}
    needs |= {(group, "none"): ["task=vision"] for group in ("tokenizer", "packing")}
    _settings(f"{group}={option}", *needs.get((group, option), []))


@pytest.mark.parametrize(("group", "option"), options_of(groups()))
def test_every_option_has_a_one_line_description(group, option):
    assert 10 <= len(description(group, option)) <= 90


WRONG = {
    "optim=adamww": ("optim=adamww", "did you mean adamw?", "valid: adamw, aif"),
    "optm=adamw": ("optm", "unknown key", "did you mean optim?"),
    "train.stepss=4": ("train.stepss", "did you mean train.steps?"),
    "+train.foo=1": ("train.foo", "unknown key", "valid:"),
    "+foo=1": ("foo", "unknown key"),
    "train.steps=abc": ("train.steps=abc", "valid: a whole number"),
    "train.steps=0": ("train.steps=0", "greater than or equal to 1"),
    "train.steps=1.5": ("train.steps=1.5", "integer"),
    "train.max_seconds=MORE": ("train.max_seconds=MORE: valid: a number",),
    "train.compile=perhaps": ("train.compile=perhaps: valid: true or false",),
    "optim.directions.default.inner.kind=adamm": (
        "optim.directions.default.inner.kind=adamm: did you mean adam? valid: adam, orthogonal",
    ),
    "optim.directions.default.kind=energy": ("optim.directions.default.kind=energy: ", "valid: adam, attention_fisher"),
    "train.steps=inf": ("train.steps=inf", "finite"),
    "optim.learning_rate=-1": ("optim.learning_rate=-1", "greater than 0"),
    "optim.learning_rate=nan": ("optim.learning_rate=nan", "finite"),
    "optim.directions.default.energy_scale=-1": ("optim.directions.default.energy_scale=-1",),
    "size.n_head=3": ("size.n_head=3", "size.n_embd=128", "divisor"),
    "train.accumulation_steps=3": ("train.accumulation_steps=3", "train.batch_size"),
    "model=standard": ("optim=aif", "model=natural"),
    "data=text": ("data.train", "needs a value"),
    "init=pretrained": ("init.path", "needs a value"),
    "size=pretrained": ("size.n_layer", "init=pretrained"),
    "train.device=tpu": ("train.device=tpu", "cuda"),
    "train.sampling=once": ("train.sampling=once", "epochs"),
    "seed=-1": ("seed=-1",),
    "model=null": ("model=null", "valid:"),
    "~train": ("train", "missing"),
    "~optim": ("optim",),
    "foo": ("foo", "key=value"),
    "train=3": ("train=3", "dictionary"),
    "train.clip_norm=0": ("train.clip_norm=0", "greater than 0"),
    "experiment=nope": ("experiment=nope", "quick"),
    "experiment=null": ("experiment=null", "quick"),
    "+seed=1": ("'seed'", "already"),
    "train.log_every=100000000000000000000": ("train.log_every=100000000000000000000", "between -2**63 and 2**63"),
    "optim=[adamw,aif]": ("optim=[adamw,aif]", "no such option"),
    "model.dropout=1": ("model.dropout=1", "less than 1"),
}


@pytest.mark.parametrize(("override", "expected"), WRONG.items(), ids=WRONG.keys())
def test_wrong_input_is_one_line_that_names_key_and_what_is_valid(override, expected):
    with pytest.raises(UserError) as caught:
        _settings(override)
    message = str(caught.value)
    assert "\n" not in message
    for part in expected:
        assert part in message


@pytest.fixture
def experiments(tmp_path, monkeypatch):
    """A folder of experiments to add to, in a copy of conf/ that is read in its place."""
    shutil.copytree(conf_folder(), tmp_path / "conf")
    monkeypatch.setattr("natattn.config.compose.conf_folder", lambda: tmp_path / "conf")
    groups.cache_clear()
    yield tmp_path / "conf" / "experiment"
    groups.cache_clear()


def test_a_stale_experiment_file_is_named_with_its_line(experiments):
    (experiments / "stale.yaml").write_text("# @package _global_\n# an old one\ntrain:\n  stepz: 3\n")
    with pytest.raises(UserError, match=r"train\.stepz: unknown key; did you mean steps\?.*stale\.yaml, line 4"):
        _settings("experiment=stale")


@pytest.mark.parametrize(
    "name",
    [
        "plain.txt",
        "a=b.txt",
        "a,b.txt",
        "a(b).txt",
        "a b.txt",
        "a~b.txt",
        "it's.txt",
        "{x}.txt",
        "a$b.txt",
        "[1].txt",
        "back\\slash.txt",
        "x${a}.txt",
        "both\\'s.txt",
    ],
)
def test_paths_with_hydra_syntax_in_them_arrive_unharmed(name, tmp_path):
    path = tmp_path / name
    path.write_text("x")
    assert _settings("data=text", f"data.train={path}").data.train == str(path)


def test_what_is_too_long_for_a_path_arrives_unharmed():
    name = 300 * "x" + "(1)=.txt"
    assert _settings("data=text", f"data.train={name}").data.train == name


def test_changing_an_optimizer_keeps_no_key_of_the_old_one():
    assert set(_settings("optim=adamw").optim.directions) == {"default"}
    assert set(_settings("optim=muon").optim.directions) == {"hidden", "default"}
    assert _settings("optim=adamw").optim.directions["default"].kind == "adam"


def test_reference_takes_overrides_of_its_own():
    settings = _settings("reference=muon", "reference.learning_rate=0.5")
    assert settings.reference.learning_rate == 0.5
    assert settings.optim.learning_rate != 0.5


@pytest.mark.parametrize("swept", ["seed=range(0,1000000000)", "seed=shuffle(range(0,1000000000))"])
def test_a_sweep_of_more_jobs_than_anyone_can_wait_for_is_refused(swept):
    with pytest.raises(UserError, match=r"1,000,000,000 jobs; valid: at most 100,000"):
        sweep_jobs([swept])


def test_a_pattern_sweeps_over_the_options_of_a_group():
    assert sweep_jobs(["optim=glob(muon*)"]) == [["optim=muon"], ["optim=muon_aif"], ["optim=muon_per_head"]]
    assert sweep_jobs(["seed=glob(*)"]) == []


def test_sweeps_expand_to_their_jobs():
    assert sweep_jobs(["optim=adamw,aif", "seed=0,1"]) == [
        ["optim=adamw", "seed=0"], ["optim=adamw", "seed=1"], ["optim=aif", "seed=0"], ["optim=aif", "seed=1"]
    ]  # fmt: skip
    assert sweep_jobs(["seed=range(0,3)"]) == [["seed=0"], ["seed=1"], ["seed=2"]]
    assert sweep_jobs(["optim=glob(soap*)"]) == [["optim=soap"], ["optim=soap_muon"]]
    assert sweep_jobs([]) == [[]]
    with pytest.raises(UserError, match="INTERVAL_SWEEP"):
        sweep_jobs(["train.clip_norm=interval(0.5,1)"])


def test_an_experiment_that_does_not_compose_is_one_line(experiments):
    (experiments / "broken.yaml").write_text("# @package _global_\ndefaults:\n  - override /optim: nobody\n")
    assert description("experiment", "broken") == ""  # it has no comment
    with pytest.raises(UserError, match="optim/nobody") as caught:
        _settings("experiment=broken")
    assert "\n" not in str(caught.value)


def test_settings_are_frozen():
    settings = _settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.train.steps = 3
