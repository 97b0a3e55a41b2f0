"""A user's own stream: the tutorial's code, as it stands there, used by name and held to the contract."""

import importlib
import pkgutil
import re
import sys
from pathlib import Path

import pytest

from widestream import streams
from widestream.errors import UserError
from widestream.model.build import build_model
from widestream.model.catalog import list_streams
from widestream.recipe import load_recipe
from widestream.streams import OWN_KINDS, kinds, stream_class
from widestream.streams.base import Stream
from widestream.streams.vector import rezero
from widestream.streams.vector.plain import VectorStream
from widestream.testing import CHECKS, check_stream

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorials" / "your-own-stream.md"
STREAM = {"kind": "forgetful:ForgetfulStream"}


@pytest.fixture
def forgetful(tmp_path, monkeypatch):
    """The tutorial's file in the working directory, as a user would have it."""
    code = re.search(r"```python\n(.*?)```", TUTORIAL.read_text(), re.DOTALL)
    assert code is not None
    (tmp_path / "forgetful.py").write_text(code[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "forgetful", raising=False)
    return tmp_path / "forgetful.py"


@pytest.mark.parametrize("check", CHECKS)
def test_the_tutorials_stream_passes_the_contract(forgetful, check):
    CHECKS[check](STREAM, {})


def test_the_tutorials_stream_works_in_a_recipe(forgetful):
    config = load_recipe("demo/transformer", ["model.stream.kind=forgetful:ForgetfulStream"])
    assert type(config.model.stream).__name__ == "ForgetfulConfig"


def test_forty_lines(forgetful):
    lines = [line for line in forgetful.read_text().splitlines() if line.strip()]
    assert len(lines) <= 45


@pytest.mark.parametrize(
    ("old", "new", "failing"),
    [
        ('getattr(self, f"keep_{site}") * state + written', "state + written", "gradients"),
        ("2 * config.num_layers", "3 * config.num_layers", "parameter_count"),
        ("starts_plain=True", "starts_plain=False", "plain_start"),
        ("* state + written", "* state + written.cumsum(1)", "documents"),
        ("* state + written", "* state + written.flip(1)", "causality"),
        ("flops=0", "flops=10**6", "cost"),
    ],
)
def test_the_contract_notices_what_is_wrong(forgetful, old, new, failing):
    code = forgetful.read_text()
    assert old in code
    forgetful.write_text(code.replace(old, new))
    with pytest.raises(AssertionError, match=failing):
        check_stream(STREAM)


def test_kinds_that_cannot_be_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="did you mean matrix"):
        stream_class("matrx")
    with pytest.raises(UserError, match="cannot be loaded: ModuleNotFoundError: No module named 'nowhere'"):
        stream_class("nowhere:Stream")
    with pytest.raises(UserError, match=r"cannot be loaded: .*NoSuchStream"):
        stream_class("widestream.streams.vector.plain:NoSuchStream")


def test_installed_packages_offer_streams(tmp_path, monkeypatch):
    package = tmp_path / "offered-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: offered\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(
        "[widestream.streams]\noffered = widestream.streams.vector.plain:VectorStream\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert "offered" in kinds()
    assert stream_class("offered").__name__ == "VectorStream"


def test_a_file_a_line_and_a_recipe_are_all_that_a_new_stream_of_the_package_takes(tmp_path, monkeypatch):
    source = Path(rezero.__file__).read_text(encoding="utf-8")
    (tmp_path / "brand_new.py").write_text(source.replace('"rezero"', '"brand_new"').replace("ReZeroS", "BrandNewS"))
    (tmp_path / "brand_new.yaml").write_text("extends: zoo/transformer\nmodel:\n  stream: {kind: brand_new}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(OWN_KINDS, "brand_new", "brand_new:BrandNewStream")
    try:
        assert "brand_new" in {row.kind for row in list_streams(load_recipe("zoo/transformer").model)}
        config = load_recipe(tmp_path / "brand_new.yaml")
        assert build_model(config.model).stream.__class__.__name__ == "BrandNewStream"
        CHECKS["parameter_count"]({"kind": "brand_new"}, {})
    finally:
        sys.modules.pop("brand_new", None)


def test_every_stream_of_the_package_has_a_name_that_is_its_settings_kind():
    """So that none is forgotten in the table, and none is listed under another's name."""
    modules = [
        importlib.import_module(module.name)
        for module in pkgutil.walk_packages(streams.__path__, "widestream.streams.")
        if not module.ispkg
    ]
    classes = {value for module in modules for value in vars(module).values() if isinstance(value, type)}
    named = {
        cls.Config.__dataclass_fields__["kind"].default: f"{cls.__module__}:{cls.__name__}"
        for cls in classes
        if issubclass(cls, Stream) and cls.__module__.startswith("widestream.") and "Config" in vars(cls)
    }
    assert named == OWN_KINDS


@pytest.mark.parametrize("family", ["vector", "depth", "lanes", "matrix"])
def test_a_family_lists_its_streams(family):
    """Each by kind and file, in the docstring of its package."""
    package = importlib.import_module(f"widestream.streams.{family}")
    rows = [line.split() for line in package.__doc__.splitlines() if line.startswith("    ")]
    places = {kind: target.partition(":")[0] for kind, target in OWN_KINDS.items()}
    prefix = f"{package.__name__}."
    assert {row[0]: prefix + row[-1].removesuffix(".py") for row in rows} == {
        kind: module for kind, module in places.items() if module.startswith(prefix)
    }


def test_a_stream_takes_its_own_settings_only():
    config = load_recipe("zoo/transformer", ["model.stream.kind=rezero"]).model
    assert rezero.ReZeroStream.settings_of(config) is config.stream
    with pytest.raises(AssertionError, match="VectorStream is set by VectorConfig, not by ReZeroConfig"):
        VectorStream.settings_of(config)
