import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from natattn.config.messages import validation_line
from natattn.data import DataSettings, TokenizerSettings
from natattn.data.images import ImageDataSettings, PairDataSettings
from natattn.training.settings import NoText

CONF = Path(__file__).parents[2] / "conf"
OPTIONS = sorted([*CONF.glob("data/*.yaml"), *CONF.glob("tokenizer/*.yaml")])
SCHEMAS: dict[str, TypeAdapter[Any]] = {
    "data": TypeAdapter(DataSettings | ImageDataSettings | PairDataSettings),
    "tokenizer": TypeAdapter(TokenizerSettings | NoText),
}


@pytest.mark.parametrize("path", OPTIONS, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_every_option_fits_its_schema_and_says_what_it_is(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# ")
    assert len(text.splitlines()[0]) <= 92
    SCHEMAS[path.parent.name].validate_python(yaml.safe_load(text))


@pytest.mark.parametrize(
    ("option", "key", "value"),
    [
        ("data/stdlib", "validation_fraction", 0.0),
        ("data/stdlib", "validation_fraction", 0.5),
        ("data/stdlib", "unknown", 1),
        ("data/wikitext2", "release", "wikitext-3"),
        ("data/text", "errors", "ignore"),
        ("data/text", "field", 3),
        ("data/grammar", "recursion", 1.0),
        ("data/grammar", "depth", 0),
        ("data/grammar", "kind", "gramar"),
        ("data/digits", "image_size", 0),
        ("data/digits", "shift", -1),
        ("data/digits", "shift", 8),
        ("data/digits", "flip", "sometimes"),
        ("data/digits", "test_fraction", 0.5),
        ("data/image_folder", "channels", "cmyk"),
        ("data/cifar10", "dataset", ""),
        ("data/digit_scenes", "flip", True),
        ("data/digit_scenes", "validation_galleries", 0),
        ("data/digit_scenes", "train_pairs", 0),
        ("data/captions", "errors", "ignore"),
        ("data/flickr8k", "caption_column", []),
        ("tokenizer/bpe", "vocab_size", 256),
        ("tokenizer/hf", "path", ""),
    ],
)
def test_values_out_of_range_are_refused(option: str, key: str, value: object) -> None:
    group = option.split("/")[0]
    fields = yaml.safe_load((CONF / f"{option}.yaml").read_text()) | {key: value}
    with pytest.raises(ValidationError):
        SCHEMAS[group].validate_python(fields)


@pytest.mark.parametrize(
    ("option", "key", "value", "message"),
    [
        ("data/digits", "shift", 8, "shifts images of 8 pixels out of view. Use 0 … 7"),
        ("data/digit_scenes", "flip", True, "mirroring a scene makes its caption wrong. Use false"),
    ],
)
def test_impossible_augmentation_is_explained(option: str, key: str, value: object, message: str) -> None:
    fields = yaml.safe_load((CONF / f"{option}.yaml").read_text()) | {key: value}
    schema: TypeAdapter[Any] = TypeAdapter(ImageDataSettings if option == "data/digits" else PairDataSettings)
    with pytest.raises(ValidationError) as error:
        schema.validate_python(fields)
    assert validation_line(error.value.errors()[0], fields, CONF) == f"{key}={value}: {message}"


@pytest.mark.parametrize("package", ["natattn.data", "natattn.data.images"])
def test_importing_the_package_loads_no_heavy_library(package: str) -> None:
    heavy = ["torch", "transformers", "datasets", "tokenizers", "pyarrow", "rich", "PIL"]
    script = f"import sys, {package}; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=CONF.parent, check=True)
    assert result.stdout.strip() == "[]"
