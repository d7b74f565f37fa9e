"""Settings from flags, environment, file and defaults: which one counts, what is refused, and nothing lost on disk."""

import dataclasses
import importlib
import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lamoid.cli import VERBS
from lamoid.errors import DataError, UsageError
from lamoid.recipes.recipe import dump, load, make, option, parse


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A recipe with a field of every kind."""

    model: str = option("", "a place", positional=True)
    steps: int = option(10, "how many")
    limit: int | None = option(None, "at most")
    rate: float = option(0.5, "how fast, in %")
    name: str = option("none", "what it is called")
    kind: str = option("red", "which one", choices=("red", "green"))
    data: list[str] = option([], "where from")
    deep: bool = option(False, "whether deep")
    wide: bool = option(True, "whether wide")


@pytest.fixture(autouse=True)
def no_settings_in_the_environment(monkeypatch):
    for field in dataclasses.fields(Recipe):
        monkeypatch.delenv(f"LAMOID_{field.name.upper()}", raising=False)


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "recipe.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return str(path)

    return write


def parsed(*arguments):
    return parse(Recipe, arguments, "lamoid test")


def test_defaults():
    assert parsed() == Recipe()
    assert Recipe().data is not Recipe().data


def test_a_flag_counts_more_than_the_environment_than_the_file_than_the_default(file, monkeypatch):
    path = file("steps: 2\nrate: 2\nname: file\n")
    assert (parsed("--recipe", path).steps, parsed("--recipe", path).rate) == (2, 2.0)
    monkeypatch.setenv("LAMOID_STEPS", "3")
    monkeypatch.setenv("LAMOID_RATE", "3")
    recipe = parsed("--recipe", path, "--steps", "4")
    assert (recipe.steps, recipe.rate, recipe.name, recipe.kind) == (4, 3.0, "file", "red")
    assert parsed().steps == 3


def test_a_flag_may_set_what_is_false_or_nothing(file, monkeypatch):
    path = file("deep: true\nlimit: 7\nname: x\ndata: [a, b]\n")
    recipe = parsed("--recipe", path, "--no-deep", "--name", "", "--no-wide")
    assert (recipe.deep, recipe.name, recipe.wide, recipe.limit, recipe.data) == (False, "", False, 7, ["a", "b"])
    monkeypatch.setenv("LAMOID_DEEP", "no")
    assert parsed("--recipe", path).deep is False
    assert parsed("--recipe", path, "--deep").deep is True


def test_flags_of_every_kind():
    recipe = parsed("place", "--steps=3", "--limit", "4", "--rate", "1e-3", "--data", "a", "b", "--data", "c", "--deep")
    assert recipe == Recipe("place", 3, 4, 0.001, data=["a", "b", "c"], deep=True)


@dataclasses.dataclass(frozen=True)
class TwoPlaces:
    """A recipe that is mostly called by place."""

    model: str = option("", "which model", positional=True)
    prompt: str = option("", "which prompt", positional=True)
    steps: int = option(0, "how many")
    deep: bool = option(False, "whether deep")


@pytest.mark.parametrize(
    "words",
    [
        "m p --steps 3 --deep",
        "m --steps 3 p --deep",
        "--deep m p --steps 3",
        "--deep --steps=3 m p",
        "m --deep --steps 3 p",
    ],
)
def test_flags_stand_anywhere_between_places(words):
    assert parse(TwoPlaces, words.split(), "lamoid test") == TwoPlaces("m", "p", 3, True)
    assert parse(TwoPlaces, ["--deep", "m"], "lamoid test") == TwoPlaces("m", deep=True)


def test_lists_in_the_environment_are_paths(monkeypatch):
    monkeypatch.setenv("LAMOID_DATA", "a:b c:d")
    assert parsed().data == ["a", "b c", "d"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--step", "3", "--stepps", "3"], "--stepps is no flag; did you mean --steps?"),
        (["--naem=x"], "--naem is no flag; did you mean --name?"),
        (["--kin-d", "x"], "--kin-d is no flag; did you mean --kind?"),
        (["--zzz"], "--zzz is no flag; did you mean --"),
        (["a", "b"], "unrecognized arguments: b"),
        (["--steps"], "argument --steps: expected one argument"),
        (["--steps", "many"], "steps is 'many'; it must be a whole number"),
        (["--steps", "1.5"], "steps is '1.5'; it must be a whole number"),
        (["--limit", ""], "limit is ''; it must be a whole number"),
        (["--rate", "fast"], "rate is 'fast'; it must be a number"),
        (["--kind", "blue"], "kind is 'blue'; it must be one of red, green"),
        (["--deep=maybe"], "--deep"),
    ],
)
def test_a_wrong_call_is_explained(arguments, message):
    with pytest.raises(UsageError) as caught:
        parsed(*arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Recipe)])
def test_an_unknown_key_names_the_nearest(name, file):
    wrong = name + "e"
    with pytest.raises(UsageError, match=rf"^{wrong} is no setting of Recipe; did you mean {name}\?"):
        make(Recipe, {wrong: 1})
    with pytest.raises(UsageError, match=rf"^{wrong} is no setting of Recipe; did you mean {name}\?"):
        parsed("--recipe", file(f"{wrong}: 1\n"))


GOOD = [
    ("steps", 3, 3),
    ("steps", 3.0, 3),
    ("steps", "3", 3),
    ("steps", "-3", -3),
    ("limit", None, None),
    ("limit", 5, 5),
    ("rate", 2, 2.0),
    ("rate", "1e-3", 0.001),
    ("rate", "inf", math.inf),
    ("name", "3", "3"),
    ("name", "true", "true"),
    ("data", ["a", "b"], ["a", "b"]),
    ("data", "a", ["a"]),
    ("data", [], []),
    ("deep", True, True),
    ("deep", "YES", True),
    ("deep", "0", False),
    ("deep", "False", False),
]


@pytest.mark.parametrize(("name", "value", "expected"), GOOD, ids=str)
def test_values_are_converted(name, value, expected):
    converted = getattr(make(Recipe, {name: value}), name)
    assert converted == expected
    assert type(converted) is type(expected)


BAD = [
    ("steps", None),
    ("steps", True),
    ("steps", 1.5),
    ("steps", math.inf),
    ("steps", math.nan),
    ("steps", "1.0"),
    ("steps", [1]),
    ("steps", {}),
    ("limit", "none"),
    ("rate", False),
    ("rate", None),
    ("rate", "x"),
    ("rate", [0.5]),
    ("name", 3),
    ("name", None),
    ("name", True),
    ("name", ["a"]),
    ("data", [1]),
    ("data", ["a", None]),
    ("data", None),
    ("data", {"a": 1}),
    ("deep", 1),
    ("deep", "maybe"),
    ("deep", None),
    ("deep", "2"),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=str)
def test_values_of_the_wrong_type_are_refused_by_name(name, value):
    with pytest.raises(UsageError, match=rf"^{name} is .*; it must be "):
        make(Recipe, {name: value})


def test_types_are_checked_wherever_values_come_from(file, monkeypatch):
    with pytest.raises(UsageError, match=r"^steps is inf; it must be a whole number"):
        parsed("--recipe", file("steps: .inf\n"))
    monkeypatch.setenv("LAMOID_STEPS", "soon")
    with pytest.raises(UsageError, match=r"^steps is 'soon'; it must be a whole number"):
        parsed()


@pytest.mark.parametrize(
    "content",
    ["", "[]", "a", "3: 4\n", "a: [", "a: b: c", "\t- x", b"\xff\xfe", "!!python/object/apply:os.getcwd []", "*x"],
    ids=repr,
)
def test_a_file_without_settings_is_named(file, content):
    with pytest.raises(DataError, match=r"recipe\.yaml (cannot be read as YAML|holds no settings)") as caught:
        parsed("--recipe", file(content))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.yaml cannot be read"):
        parsed("--recipe", str(tmp_path / "none.yaml"))
    with pytest.raises(DataError, match=r"cannot be read"):
        load(tmp_path)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    recipe=st.builds(
        Recipe,
        model=st.text(),
        steps=st.integers(),
        limit=st.none() | st.integers(),
        rate=st.floats(allow_nan=False),
        name=st.text()
        | st.sampled_from(["1", "true", "no", "null", "~", "1e3", "0x1f", "- a", "a: b", "2024-01-01", "…"]),
        kind=st.sampled_from(["red", "green"]),
        data=st.lists(st.text()),
        deep=st.booleans(),
        wide=st.booleans(),
    )
)
def test_what_is_dumped_comes_back(recipe):
    values = yaml.safe_load(dump(recipe))
    assert list(values) == [field.name for field in dataclasses.fields(Recipe)]
    assert make(Recipe, values) == recipe


def test_a_dumped_file_makes_the_recipe_again(file):
    recipe = Recipe("Việt Nam/模型", rate=1e-5, name="1e-5", data=["a b", "😀"], wide=False)
    assert parsed("--recipe", file(dump(recipe))) == recipe
    assert "Việt Nam/模型" in dump(recipe)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_each_of_its_settings(verb, capsys):
    recipe = importlib.import_module(VERBS[verb][0]).Recipe
    assert recipe.__doc__.strip().endswith(".")
    for field in dataclasses.fields(recipe):
        assert len(field.metadata["help"].split()) >= 2, field.name
    with pytest.raises(SystemExit) as left:
        parse(recipe, ["--help"], f"lamoid {verb}")
    assert left.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(recipe):
        assert field.metadata["help"].split("%")[0] in shown
        positional = field.metadata["positional"]
        assert (field.name.upper() if positional else f"--{field.name.replace('_', '-')}") in shown


@pytest.mark.parametrize("verb", VERBS)
def test_every_verbs_defaults_come_back_from_a_file(verb):
    recipe = importlib.import_module(VERBS[verb][0]).Recipe
    assert make(recipe, yaml.safe_load(dump(recipe()))) == recipe()
