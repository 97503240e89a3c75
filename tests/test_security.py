"""No code of a stranger runs: not of a model's folder, nor of a data set, nor through what our sources call."""

import ast
import json
import os
import pickle
from pathlib import Path

import pytest
from property_tools import run

from natattn.data.text.tokenizers import ByteTokenizer
from natattn.storage.atomic import conf_folder

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("natattn/**/*.py"), *ROOT.glob("scripts/**/*.py")])
SERIALISERS = {"pickle", "cPickle", "_pickle", "dill", "marshal", "shelve", "joblib", "cloudpickle", "jsonpickle"}


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """What is there once foreign code has run."""
    return tmp_path / "foreign_code_has_run"


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A GPT-2 of its own tokenizer, as transformers saves it."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path / "model"
    sizes = GPT2Config(
        n_layer=1, n_embd=8, n_head=1, vocab_size=257, n_positions=16, bos_token_id=256, eos_token_id=256
    )
    GPT2LMHeadModel(sizes).save_pretrained(folder)
    ByteTokenizer().save(folder)
    return folder


@pytest.fixture
def short_text(tmp_path: Path) -> Path:
    path = tmp_path / "short.txt"
    path.write_text("a few words in a line\n\n" * 60, encoding="utf-8")
    return path


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    """(dotted name, call) of every call."""
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_no_source_can_run_what_it_reads():
    assert len(SOURCES) > 200
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not SERIALISERS & {name.partition(".")[0] for name in names}, (path, names)
        for name, call in calls(tree):
            check_call(f"{path}:{call.lineno}", name, call)


def check_call(place: str, name: str, call: ast.Call) -> None:
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    assert name not in {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}, place
    assert name not in {"torch.load", "torch.save", "yaml.unsafe_load", "yaml.full_load"}, place
    assert not name.endswith(("read_pickle", "register_new_resolver", "hydra.utils.instantiate")), place
    for key in ("allow_pickle", "shell", "trust_remote_code"):
        assert given.get(key, "False") == "False", (place, key)
    if name == "yaml.load":
        assert "SafeLoader" in ast.unparse(call.args[1]), place


@pytest.mark.parametrize(
    "source", ["eval(x)", "torch.load(p)", "yaml.load(t, yaml.Loader)", "f(trust_remote_code=None)"]
)
def test_what_could_run_would_be_seen(source):
    ((name, call),) = calls(ast.parse(source))
    with pytest.raises(AssertionError):
        check_call("here", name, call)


def test_every_loading_of_a_model_says_that_nothing_is_trusted():
    found = [
        (path.name, name, {keyword.arg for keyword in call.keywords})
        for path in ROOT.glob("natattn/**/*.py")
        for name, call in calls(ast.parse(path.read_text(encoding="utf-8")))
        if name.endswith(".from_pretrained")
    ]
    assert len(found) >= 8
    for path, name, given in found:
        assert "trust_remote_code" in given, (path, name)
        assert "use_safetensors" in given or name.startswith(("AutoConfig", "AutoTokenizer")), (path, name)


def test_configuration_files_hold_data_alone():
    for path in conf_folder().rglob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        # The one class that Hydra makes by name is ours.
        assert "_target_" not in text.replace("{_target_: natattn.cli.sweep_callback.ReleaseJob}", ""), path
        assert "oc.env" not in text, path
        assert "!!" not in text, path


def commands(model: Path, text: Path, run_folder: Path) -> list[list[str]]:
    """Every command that reads a model."""
    data = ["data=text", f"data.train={text}"]
    (run_folder / "arms" / "natural").mkdir(parents=True)
    os.symlink(model, run_folder / "arms" / "natural" / "model")
    start = ["init=pretrained", f"init.path={model}"]
    return [
        ["train", *start, *data, "tracker=off", "train.steps=1"],
        ["analyze", *start, *data, "output=analysis"],
        ["sample", f"run={run_folder}"],
    ]


def refuses(said: str, commands: list[list[str]], marker: Path) -> None:
    for command in commands:
        ended = run(*command)
        assert ended.is_one_line, (command[0], ended)
        assert said in ended.error, (command[0], ended)
        assert not marker.exists(), command[0]


def test_pickled_weights_are_refused_unread(model_folder, short_text, marker, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (model_folder / "model.safetensors").unlink()
    (model_folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Touch(marker)}))
    pickle.loads((model_folder / "pytorch_model.bin").read_bytes())
    marker.rmdir()  # the file is as bad as it should be
    refuses("pickled weights", commands(model_folder, short_text, tmp_path / "run"), marker)


def test_code_beside_a_model_does_not_run(model_folder, short_text, marker, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asks whether to trust"))
    evil = (
        f"import os\nos.mkdir({str(marker)!r})\nclass Evil: pass\ndef generate(*_, **__): os.mkdir({str(marker)!r})\n"
    )
    (model_folder / "evil.py").write_text(evil, encoding="utf-8")
    (model_folder / "custom_generate").mkdir()
    (model_folder / "custom_generate" / "generate.py").write_text(evil, encoding="utf-8")
    content = json.loads((model_folder / "config.json").read_text())
    content |= {"model_type": "evil", "architectures": ["Evil"]}
    content["auto_map"] = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForCausalLM"), "evil.Evil")
    (model_folder / "config.json").write_text(json.dumps(content))
    tokens = json.loads((model_folder / "tokenizer_config.json").read_text())
    tokens |= {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "Evil"}
    (model_folder / "tokenizer_config.json").write_text(json.dumps(tokens))
    refuses(str(model_folder.name), commands(model_folder, short_text, tmp_path / "run"), marker)


@pytest.mark.parametrize("key", ["_attn_implementation", pytest.param("attn_implementation", marks=pytest.mark.slow)])
def test_attention_kernels_of_the_hub_are_refused(key, model_folder, short_text, marker, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = json.loads((model_folder / "config.json").read_text())
    (model_folder / "config.json").write_text(json.dumps({**content, "text_config": {key: "someone/kernel"}}))
    refuses("code of the hub", commands(model_folder, short_text, tmp_path / "run"), marker)


def test_a_generating_function_beside_a_model_is_not_called(model_folder, marker, tmp_path):
    """The model itself is a good one, so that it writes."""
    (model_folder / "custom_generate").mkdir()
    (model_folder / "custom_generate" / "generate.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n")
    (tmp_path / "run" / "arms" / "natural").mkdir(parents=True)
    model_folder.rename(tmp_path / "run" / "arms" / "natural" / "model")
    ended = run("sample", f"run={tmp_path / 'run'}", "prompt=ab", "tokens=2")
    assert ended.code == 0, ended
    assert not marker.exists()


@pytest.mark.parametrize("name", ["pandas", pytest.param("json", marks=pytest.mark.slow)])
def test_readers_of_datasets_are_no_data_sets(name, tmp_path, monkeypatch, marker):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.pkl").write_bytes(pickle.dumps(Touch(marker)))
    ended = run("train", "task=vision", "data=image_dataset", f"data.dataset={name}", "tracker=off")
    assert ended.is_one_line, ended
    assert "a reader of `datasets`" in ended.error
    assert not marker.exists()


@pytest.mark.slow
def test_a_script_in_a_folder_of_data_does_not_run(tmp_path, monkeypatch, marker):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "pictures.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n")
    (folder / "train.pkl").write_bytes(pickle.dumps(Touch(marker)))
    (folder / "train.npy").write_bytes(pickle.dumps(Touch(marker)))
    ended = run("train", "task=vision", "data=image_dataset", f"data.dataset={folder}", "tracker=off")
    assert ended.is_one_line, ended
    assert not marker.exists()
