"""Recipes: unknown keys, overrides, origins, and that a dumped recipe reads back as the same one."""

from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, field_validator

from puna.core.errors import PunaError
from puna.core.recipe import Config, check, describe, dump, load
from puna.data.recipe import DataRecipe
from puna.train.recipe import Recipe

RECIPES = Path(__file__).parents[2] / "recipes"


class Leaf(Config):
    """A section in a section."""

    rate: float = Field(0.1, gt=0, description="a number")
    label: str = Field("", description="a text")


class Section(Config):
    """A section."""

    steps: int = Field(1, ge=0, description="a whole number")
    kind: Literal["warm", "cold"] = Field("warm", description="one of two")
    leaf: Leaf = Field(default_factory=Leaf, description="a section")


class Item(Config):
    """One of a list of tables."""

    path: str = Field(description="a text that must be there")
    sizes: list[int] = Field(default_factory=list, description="numbers")

    @field_validator("path")
    @classmethod
    def _not_root(cls, path: str) -> str:
        if path == "/":
            raise ValueError("item.path = / is everything. Name a folder")
        return path


class Top(Config):
    """A recipe."""

    name: str = Field("x", description="a text")
    parent: Section | None = Field(None, description="a section that may be missing")
    section: Section = Field(default_factory=Section, description="a section")
    items: list[Item] = Field(default_factory=list, description="tables")


def write(folder: Path, text: str) -> Path:
    path = folder / "r.toml"
    path.write_text(text, encoding="utf-8")
    return path


def origins(loaded: Any) -> dict[str, str]:
    return {key: origin for key, _, origin, _ in describe(loaded)}


@pytest.mark.parametrize(
    ("text", "key", "meant"),
    [
        ("nmae = 'a'", "nmae", "name"),
        ("[section]\nstep = 1", "section.step", "steps"),
        ("[section.leaf]\nraet = 1", "section.leaf.raet", "rate"),
        ("[parent.leaf]\nlabl = 'a'", "parent.leaf.labl", "label"),
        ("[[items]]\npath = 'a'\n[[items]]\npath = 'b'\nsize = 1", "items.1.size", "sizes"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one_at_any_depth(
    tmp_path: Path, text: str, key: str, meant: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(PunaError) as caught:
        load(Top, path)
    assert str(caught.value) == f"{path}: unknown key '{key}'. Did you mean '{meant}'?"


@pytest.mark.parametrize("override", ["train.stpes=5", "optimizer.lrr=1", "model.hiden_size=64", "log.evry=1"])
def test_an_override_with_an_unknown_key_of_the_training_recipe_is_answered_too(override: str) -> None:
    with pytest.raises(PunaError, match=r"unknown key '.*'\. Did you mean '"):
        load(Recipe, RECIPES / "smoke.toml", [override])


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("section.steps=500", "steps", 500),
        ("section.kind=cold", "kind", "cold"),
        ('section.kind="cold"', "kind", "cold"),
        ("section.leaf.rate=3e-4", "leaf", Leaf(rate=3e-4)),
        ("section.leaf={rate=2.0, label='b'}", "leaf", Leaf(rate=2.0, label="b")),
        ("section.leaf.label=007", "leaf", Leaf(label="007")),
        ("section.leaf.label=2026-01-02", "leaf", Leaf(label="2026-01-02")),
        ("section.leaf.label=true", "leaf", Leaf(label="true")),
        ("section.leaf.label=a=b # c", "leaf", Leaf(label="a=b # c")),
        ("section.leaf.label=", "leaf", Leaf(label="")),
    ],
)
def test_overrides_have_the_type_of_their_field(override: str, key: str, value: object) -> None:
    assert getattr(load(Top, None, [override]).value.section, key) == value


def test_a_whole_list_can_be_overridden_and_the_last_override_wins() -> None:
    top = load(Top, None, ["items=[{path='a', sizes=[1, 2]}]", "section.steps=1", "section.steps=2"]).value
    assert top.items == [Item(path="a", sizes=[1, 2])]
    assert top.section.steps == 2


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("steps", "'steps' is not an override. Write it as key=value"),
        ("=5", "'=5' is not an override."),
        ("section.steps=many", "section.steps = 'many': "),
        ("section.steps=-1", "section.steps = -1: "),
        ("section.kind=hot", "section.kind = 'hot': Input should be 'warm' or 'cold'."),
        ("section=5", "section = 5: "),
        ("name.first=a", "name"),
        ("items=[{}]", "'items.0.path' is missing."),
        ("items=[{path='/'}]", "recipe: item.path = / is everything. Name a folder."),
    ],
)
def test_a_wrong_override_is_one_sentence(override: str, sentence: str) -> None:
    with pytest.raises(PunaError) as caught:
        load(Top, None, [override])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_value_is_no_section(tmp_path: Path) -> None:
    with pytest.raises(PunaError, match="'name' is a value, not a section"):
        load(Top, write(tmp_path, "name = 'a'"), ["name.first=b"])


def test_a_long_wrong_value_is_shortened() -> None:
    with pytest.raises(PunaError) as caught:
        check(Top, {"section": ["many words"] * 100}, "r.toml")
    assert len(str(caught.value)) < 250


def test_origins_are_default_file_and_command_line(tmp_path: Path) -> None:
    path = write(tmp_path, "name = 'a'\n[section]\nsteps = 3\nkind = 'cold'\n[[items]]\npath = 'p'")
    found = origins(load(Top, path, ["section.steps=4", "section.leaf.rate=1.0"]))
    assert found == {
        "name": str(path),
        "parent": "default",
        "section.steps": "command line",
        "section.kind": str(path),
        "section.leaf.rate": "command line",
        "section.leaf.label": "default",
        "items": str(path),
    }


def test_a_section_set_at_once_claims_only_what_it_sets(tmp_path: Path) -> None:
    path = write(tmp_path, "[section]\nsteps = 3\nkind = 'cold'\n[section.leaf]\nlabel = 'a'")
    loaded = load(Top, path, ["section={steps = 4}"])
    assert loaded.value.section == Section(steps=4)
    found = origins(loaded)
    assert (found["section.steps"], found["section.kind"], found["section.leaf.label"]) == (
        "command line",
        "default",
        "default",
    )


def test_what_a_preset_sets_is_said_to_be_from_it() -> None:
    found = origins(load(Recipe, RECIPES / "llama3-8b.toml"))
    assert found["model.hidden_size"] == "preset llama3-8b"
    assert origins(load(Recipe, RECIPES / "llama3-8b.toml", ["model.hidden_size=2048"]))["model.hidden_size"] == (
        "command line"
    )


def test_every_field_of_the_schemas_says_what_it_means() -> None:
    for schema, path in ((Recipe, RECIPES / "smoke.toml"), (DataRecipe, RECIPES / "data" / "smoke.toml")):
        assert all(meaning for _, _, _, meaning in describe(load(schema, path)))  # type: ignore[type-var]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_a_training_recipe_dumps_and_reads_back_as_itself(path: Path, tmp_path: Path) -> None:
    value = load(Recipe, path).value
    assert load(Recipe, write(tmp_path, dump(value))).value == value


@pytest.mark.parametrize("path", sorted((RECIPES / "data").glob("*.toml")), ids=lambda path: path.stem)
def test_a_data_recipe_dumps_and_reads_back_as_itself(path: Path, tmp_path: Path) -> None:
    value = load(DataRecipe, path).value
    assert load(DataRecipe, write(tmp_path, dump(value))).value == value


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
leaves = st.builds(Leaf, rate=st.floats(1e-300, 1e300), label=texts)
sections = st.builds(Section, steps=st.integers(0, 2**63 - 1), kind=st.sampled_from(["warm", "cold"]), leaf=leaves)
items = st.builds(
    Item, path=texts.filter(lambda path: path != "/"), sizes=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3)
)


@settings(max_examples=40, deadline=None)
@given(st.builds(Top, name=texts, parent=st.none() | sections, section=sections, items=st.lists(items, max_size=3)))
def test_any_recipe_dumps_and_reads_back_as_itself(tmp_path_factory: pytest.TempPathFactory, top: Top) -> None:
    assert load(Top, write(tmp_path_factory.getbasetemp(), dump(top))).value == top


def test_files_that_cannot_be_read_are_one_sentence(tmp_path: Path) -> None:
    write(tmp_path, "name = ")
    with pytest.raises(PunaError, match="is not valid TOML"):
        load(Top, tmp_path / "r.toml")
    with pytest.raises(PunaError, match=r"does not exist\. Did you mean 'r.toml'\?"):
        load(Top, tmp_path / "rr.toml")
    with pytest.raises(PunaError, match="is a folder, not a recipe"):
        load(Top, tmp_path)
    with pytest.raises(PunaError, match="cannot be read"):
        load(Top, tmp_path / "r.toml" / "x.toml")
    (tmp_path / "r.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(PunaError, match="is not valid TOML"):
        load(Top, tmp_path / "r.toml")


def test_a_misspelt_key_that_is_required_is_called_misspelt_not_missing() -> None:
    class Section(Config):
        width: int = Field(description="a field without default")

    with pytest.raises(PunaError, match=r"unknown key 'widht'\. Did you mean 'width'"):
        load(Section, None, ["widht=3"])


def test_a_wrong_count_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('[train]\ntokens = "many"\n')
    with pytest.raises(PunaError, match=r"r\.toml: 'many' is not a count"):
        load(Recipe, path)
