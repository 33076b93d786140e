import inspect
from typing import Annotated, Literal

import pytest
from pydantic import Field, model_validator

from nanovlm import ComponentConfig, ConfigError, NanoVLMError, SkipSample, errors
from nanovlm.components import parse
from nanovlm.errors import join, unknown


class Room(ComponentConfig):
    windows: Annotated[int, Field(ge=1)] = 1
    """How many let
    light in."""
    walls: int = 4


class House(ComponentConfig):
    rooms: list[Room] = []
    """The rooms, first to last."""
    named: dict[str, Room] = {}
    cellar: Room | None = None
    attic: Annotated[Room, Field()] = Room()
    storeys: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """How high it is."""
    roof: Literal["flat", "hip"] = "flat"
    address: str
    """Where it stands."""

    @model_validator(mode="after")
    def _not_lost(self):
        if self.address == "nowhere":
            raise ValueError("a house stands somewhere")
        return self


def explained(where: str = "house", **options) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(House, {"address": "here"} | options, where)
    return str(caught.value)


def test_an_unknown_name_comes_with_the_nearest_and_the_known():
    message = unknown("projector", "pixel_shufle", ["pixel_shuffle", "average"])
    assert (
        message
        == "unknown projector 'pixel_shufle'. Did you mean 'pixel_shuffle'?\n  Known here: average, pixel_shuffle"
    )


def test_nothing_is_suggested_where_nothing_is_near():
    assert unknown("projector", "zzz", ["pixel_shuffle"]) == "unknown projector 'zzz'.\n  Known here: pixel_shuffle"


def test_where_nothing_is_known_it_says_so():
    assert unknown("option", "a", []) == "unknown option 'a'.\n  Known here: nothing"


def test_a_name_that_is_known_twice_is_listed_once():
    assert unknown("projector", "b", iter(["a", "c", "a"])).endswith("Known here: a, c")


def test_one_problem_stands_by_itself():
    assert join(["only"]) == "only"


def test_several_problems_are_a_list():
    assert join(iter(["one\n  more", "two"])) == "- one\n  more\n- two"


def test_problems_that_were_joined_before_are_one_list():
    assert join([join(["one", "two"]), "three"]) == join(["one", "two", "three"]) == "- one\n- two\n- three"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rooms": [{}, {"windows": 0}]}, "house.rooms.1.windows=0: input should be greater than or equal to 1"),
        ({"named": {"hall": {"windows": 0}}}, "house.named.hall.windows=0: input should be greater than or equal to 1"),
        ({"cellar": {"windows": 0}}, "house.cellar.windows=0: input should be greater than or equal to 1"),
        ({"attic": {"windows": 0}}, "house.attic.windows=0: input should be greater than or equal to 1"),
    ],
)
def test_an_options_own_words_are_found_wherever_it_stands(options, message):
    assert explained(**options) == f"{message}\n  windows: How many let light in."


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"rooms": [{"window": 1}]}, "house.rooms.0"),
        ({"named": {"hall": {"window": 1}}}, "house.named.hall"),
        ({"cellar": {"window": 1}}, "house.cellar"),
        ({"attic": {"window": 1}}, "house.attic"),
    ],
)
def test_an_unknown_option_is_found_wherever_it_stands(options, where):
    first, second = explained(**options).splitlines()
    assert first == f"{where}: unknown option 'window'. Did you mean 'windows'?"
    assert second == "  Known here: walls, windows"


def test_an_option_without_words_of_its_own_gets_none():
    assert explained(rooms=[{"walls": "x"}]) == "house.rooms.0.walls='x': input should be a valid integer"


def test_what_may_be_one_of_several_kinds_is_one_problem():
    first, second = explained(storeys=0).splitlines()
    assert first == "house.storeys=0: input should be 'auto' or input should be greater than or equal to 1"
    assert second == "  storeys: How high it is."


def test_what_is_missing_is_explained():
    with pytest.raises(ConfigError) as caught:
        parse(House, {}, "house")
    assert str(caught.value) == "house.address is missing\n  address: Where it stands."


def test_a_validators_own_words_stand_as_they_are():
    assert explained(address="nowhere") == "house: a house stands somewhere"


@pytest.mark.parametrize(("where", "path"), [("", "roof"), ("a.b", "a.b.roof")])
def test_a_path_starts_where_it_is_told_to(where, path):
    assert explained(where, roof="x") == f"{path}='x': input should be 'flat' or 'hip'"


def test_on_top_the_place_is_the_experiment():
    assert explained("", rof="x").startswith("experiment: unknown option 'rof'. Did you mean 'roof'?")
    assert explained("", address="nowhere") == "experiment: a house stands somewhere"


def test_all_problems_are_told_at_once():
    message = explained(roof="x", rooms=3, attic=[])
    assert [line.partition(":")[0] for line in message.splitlines()] == [
        "- house.rooms=3",
        "  rooms",
        "- house.attic=[]",
        "- house.roof='x'",
    ]


def test_a_long_value_is_cut():
    message = explained(roof="x" * 1000)
    assert f"'{'x' * 100}" in message
    assert len(message) < 250


def test_every_error_can_be_told_from_a_bug():
    raised = {cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, Exception)}
    own = {cls for cls in raised if cls.__module__ == errors.__name__}
    assert {cls for cls in own if not issubclass(cls, NanoVLMError)} == {SkipSample}
    assert {cls.__name__ for cls in own} >= {"ConfigError", "PluginError", "DataError", "CheckpointError"}


def test_a_skipped_sample_has_a_reason():
    assert SkipSample("no target").reason == str(SkipSample("no target")) == "no target"
