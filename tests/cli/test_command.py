"""Options that are generated from configurations, on a command with a small configuration."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
import typer
from pydantic import Field
from typer.testing import CliRunner

from ml_filter.cli.command import Options, command
from ml_filter.config import Cli, StageConfig
from ml_filter.documents.config import SourceConfig
from ml_filter.errors import ConfigError


class Oven(StageConfig):
    heat: Annotated[int, Field(ge=50, le=250)] = Field(180, description="degrees Celsius")
    fan: bool = Field(False, description="switch the fan on")


class Guests(StageConfig):
    names: Annotated[list[str], Cli(comma_separated=True)] = Field([], description="who comes")
    seats: dict[str, int] = Field({}, description="chairs by table")


class Box(StageConfig):
    width: int = Field(30, description="centimetres across")
    height: int = Field(20, description="centimetres high")


class Cake(StageConfig):
    layers: Annotated[int, Field(gt=0)] = Field(description="number of layers")
    glaze: Literal["sugar", "chocolate"] = Field("sugar", description="what is on top")
    sweetness: float = Field(1.0, description="grams of sugar per gram of flour")
    salted: bool = Field(False, description="add salt")
    cooled: bool = Field(True, description="serve it warm")
    oven: Oven = Oven()
    box: Annotated[Box, Cli(options={"width": "--width", "height": "--height"})] = Field(
        Box(), description="how it is packed (default: in a small box)"
    )
    guest: Annotated[Guests | None, Cli(options={"names": "--guest", "seats": "--seats"})] = Field(
        None, description="names of the guests"
    )


class Drink(StageConfig):
    hot: bool = Field(False, description="serve it hot")


baked: list[tuple[SourceConfig, Cake, Drink]] = []
kitchen = typer.Typer()


@command("kitchen flour.csv --layers 2", group=kitchen)
def bake(source: Annotated[SourceConfig, Options("SOURCE...")], cake: Cake, drink: Drink) -> None:
    """Bake a cake."""
    baked.append((source, cake, drink))


def run(*arguments: str) -> Cake:
    baked.clear()
    result = CliRunner().invoke(kitchen, ["flour.csv", *arguments], standalone_mode=False)
    if result.exception:
        raise result.exception
    return baked[0][1]


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"

    def write(text: str) -> str:
        path.write_text(text)
        return str(path)

    return write


def test_an_option_overrides_set_which_overrides_the_file_which_overrides_the_default(recipe):
    file = recipe("layers: 2\nglaze: chocolate\nsweetness: 0.5\n")
    assert run("--layers", "1") == Cake(layers=1)
    cake = run("--config", file, "--set", "layers=3", "--set", "sweetness=0.7", "--layers", "4")
    assert (cake.layers, cake.sweetness, cake.glaze) == (4, 0.7, "chocolate")


def test_an_option_with_the_default_value_overrides_the_file(recipe):
    assert run("--config", recipe("{layers: 1, glaze: chocolate}"), "--glaze", "sugar").glaze == "sugar"


def test_a_flag_switches_a_setting_on_or_off():
    cake = run("--layers", "1", "--salted", "--no-cooled")
    assert (cake.salted, cake.cooled) == (True, False)


def test_set_reaches_nested_settings_and_reads_values_as_yaml(recipe):
    assert run("--layers", "1", "--set", "oven.heat=200", "--set", "oven.fan=true").oven == Oven(heat=200, fan=True)
    assert run("--config", recipe("layers: 1\noven: {fan: true}\n"), "--set", "oven.heat=200").oven.fan


def test_list_options_are_repeatable_and_take_commas_where_the_setting_says_so():
    cake = run("--layers", "1", "--guest", "anna,ben", "--guest", "carla", "--seats", "garden=4", "--seats", "hall=2")
    assert cake.guest == Guests(names=["anna", "ben", "carla"], seats={"garden": 4, "hall": 2})
    assert run("--layers", "1").guest is None


def test_the_file_may_hold_the_settings_alone_in_sections_or_as_a_pipeline(recipe):
    for text in (
        "{layers: 5, drink: {hot: true}}",
        "{cake: {layers: 5}, drink: {hot: true}, other: 1}",
        "{parameters: {cake: {layers: 5}, drink: {hot: true}}}",
    ):
        assert run("--config", recipe(text)).layers == 5
        assert baked[0][2].hot
    assert run("--config", recipe("cake:\n"), "--layers", "1").layers == 1
    run("--layers", "1", "--set", "drink.hot=true")
    assert baked[0][2].hot


def test_a_positional_source_has_options_of_its_own_and_ignores_the_file(recipe):
    run("--config", recipe("{cake: {layers: 1}, source: {text_column: body}}"), "--id-column", "key")
    assert baked[0][0] == SourceConfig(paths=["flour.csv"], id_column="key")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "missing option --layers"),
        (["--layers", "1", "--glaze", "salt"], "--glaze: Input should be 'sugar' or 'chocolate'"),
        (["--layers", "1", "--set", "oven.heat=9"], "--set oven.heat: Input should be greater than or equal to 50"),
        (["--layers", "1", "--set", "glase=sugar"], "--set glase: unknown key 'glase' (did you mean 'glaze'?)"),
        (["--layers", "1", "--set", "oven.haet=9"], "--set oven.haet: unknown key 'haet' (did you mean 'heat'?)"),
        (["--layers", "1", "--set", "x=9"], "--set x: unknown key 'x'; known keys: layers, glaze"),
        (["--set", "layers=1", "--set", "layers.x=9"], "layers.x: layers is a value, not a section with settings"),
        (["--layers", "1", "--set", "glaze"], "'glaze' is not of the form NAME=VALUE, as in sample.size=500"),
        (["--layers", "1", "--seats", "garden"], "--seats takes NAME=VALUE, not 'garden'"),
        (["--layers", "1", "--seats", "garden=many"], "--seats: Input should be a valid integer"),
    ],
)
def test_an_error_names_the_option(arguments, message):
    with pytest.raises((ConfigError, typer.BadParameter)) as caught:
        run(*arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layers: many", "recipe.yaml: layers: Input should be a valid integer"),
        ("oven: {haet: 9}", "recipe.yaml: oven: unknown key 'haet' (did you mean 'heat'?)"),
        ("cake: 5", "recipe.yaml: cake is 5; write its settings below it as `name: value`"),
        ("parameters: 3", "recipe.yaml: parameters is 3, not a section with settings"),
        ("- layers", "recipe.yaml must contain a mapping of settings"),
    ],
)
def test_an_error_in_the_file_names_the_file(text, message, recipe):
    with pytest.raises(ConfigError) as caught:
        run("--config", recipe(text))
    assert message in str(caught.value)


def test_help_comes_from_the_settings():
    text = " ".join(CliRunner().invoke(kitchen, ["--help"]).output.split())
    for part in (
        "--layers N [x>=1] Number of layers [required here or in --config]",
        "--glaze sugar|chocolate What is on top [default: sugar]",
        "--sweetness X Grams of sugar per gram of flour [default: 1.0]",
        "--guest TEXT Names of the guests; repeatable or comma-separated",
        "--seats NAME=VALUE Chairs by table; repeatable",
        "without an option: oven.*; repeatable",
        "─ How it is packed ─",
        "$ kitchen flour.csv --layers 2",
    ):
        assert part in text, part
