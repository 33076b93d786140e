"""How checks are found, made and reported; what each of them looks for is tested in test_every_check_can_fail.py."""

import time
import traceback
import unittest

import pytest
import torch.nn.functional as F
from broken_building import LargeTiny
from broken_options import plugin
from broken_pictures import Centred, Idle
from broken_projectors import OneTooMany
from torch import nn

from nanovlm import ComponentConfig, ConfigError, Dataset, PluginError, load_plugins
from nanovlm.plugins import Registries
from nanovlm.testing import Violation, building, check_component, checks_of
from nanovlm.testing.checks import KINDS, bound_to, find
from nanovlm.testing.companions import COMPANIONS, Data, Encoder, Projector


def outcome_of(cls: type, kind: str, name: str):
    (bound,) = [each for each in bound_to(find(cls, kind, Registries())) if str(each) == name]
    return bound.outcome()


def test_a_component_is_checked_by_its_name():
    outcomes = check_component("mlp")
    assert len(outcomes) > 10
    assert {outcome.result for outcome in outcomes} <= {"passed", "skipped"}


def test_all_that_fails_is_said_at_once():
    with pytest.raises(Violation) as failed:
        check_component(OneTooMany, kind="projector")
    lines = str(failed.value).splitlines()
    assert lines[0].startswith("projector onetoomany: 2 of ")
    assert lines[0].endswith(" checks fail")
    assert any(line.startswith("- tokens as promised: gives (1, 4, 24) for patches") for line in lines)


def test_a_check_by_itself_says_whose_it_is():
    (check,) = [check for check in checks_of(Idle, kind="projector") if str(check) == "every parameter learns"]
    with pytest.raises(Violation, match=r"^projector idle: every parameter learns: gives no gradient to unused.weight"):
        check()


def test_what_cannot_be_checked_is_skipped_with_its_reason():
    (check,) = [check for check in checks_of(Centred, kind="vision_encoder") if str(check) == "imports quickly"]
    with pytest.raises(unittest.SkipTest, match="no plugin registers it"):
        check()


def test_a_file_is_checked_by_the_name_that_it_registers(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(plugin(""), encoding="utf-8")
    assert all(not outcome.problem for outcome in check_component("mine", plugins=[file]))


def test_a_registered_class_is_known_by_its_name():
    (mlp,) = [entry for entry in load_plugins().projectors if entry.name == "mlp"]
    assert checks_of(mlp.cls)[0].subject.entry == mlp


def test_a_class_that_nobody_registers_needs_its_kind():
    with pytest.raises(PluginError, match="OneTooMany is registered by no plugin: say what it is by kind=, one of"):
        checks_of(OneTooMany)


def test_an_unknown_name_suggests_a_known_one():
    with pytest.raises(ConfigError, match=r"unknown component 'pixel_shufle'. Did you mean 'pixel_shuffle'"):
        checks_of("pixel_shufle")
    with pytest.raises(ConfigError, match=r"unknown kind 'projectors'. Did you mean 'projector'"):
        checks_of("mlp", kind="projectors")


def test_a_name_of_two_kinds_asks_which(tmp_path):
    file = tmp_path / "shapes_too.py"
    file.write_text(plugin("").replace('"mine"', '"shapes"'), encoding="utf-8")
    with pytest.raises(
        ConfigError, match=r"2 kinds: say which by --kind projector or --kind dataset \(in Python: kind="
    ):
        checks_of("shapes", plugins=[file])
    assert checks_of("shapes", kind="projector", plugins=[file])[0].subject.kind == "projector"


class Printing(Projector):
    def forward(self, patches):
        print("hello")
        return super().forward(patches)


def test_what_a_component_prints_is_not_shown(capsys):
    outcome_of(Printing, "projector", "pictures do not mix")
    assert capsys.readouterr().out == ""


class Stumbling(Projector):
    def forward(self, patches):
        raise KeyError("nothing here")


def test_an_error_that_nobody_expects_is_the_sentence():
    assert outcome_of(Stumbling, "projector", "pictures do not mix").problem == "raises KeyError: 'nothing here'"


class LeftOut(Data):
    id = Dataset.id


class EndsTheProcess(Projector):
    def forward(self, patches):
        raise SystemExit(3)


class NoModule:
    Config = Projector.Config

    def __init__(self, config, grid, text_dim):
        pass


def test_a_method_that_was_left_out_is_named():
    problem = outcome_of(LeftOut, "dataset", "ids are known unread").problem
    assert problem == "raises NotImplementedError() in `id`"


def test_a_component_cannot_end_the_checks():
    assert outcome_of(EndsTheProcess, "projector", "pictures do not mix").problem == "raises SystemExit(3)"


def test_what_is_no_module_is_told_so():
    assert outcome_of(NoModule, "projector", "tiny is quick").problem.startswith("is no nn.Module: derive it from")


class NotANumber(Projector):
    def forward(self, patches):
        return super().forward(patches) / 0


def test_a_loss_that_is_no_number_does_not_fall():
    problem = outcome_of(NotANumber, "projector", "learns under the trainer").problem
    assert problem.startswith("does not bring the loss down in 5 steps, at learning rates of 0.01 and 0.001: nan ")


def test_an_error_in_a_plugin_names_its_line(tmp_path):
    file = tmp_path / "mine.py"
    body = "class Mine(Projector):\n    def forward(self, patches):\n        raise KeyError('nothing here')\n"
    file.write_text(plugin("").replace("class Mine(Projector):\n    pass\n", body), encoding="utf-8")
    (check,) = [check for check in checks_of("mine", plugins=[file]) if str(check) == "pictures do not mix"]
    line = file.read_text().splitlines().index("        raise KeyError('nothing here')") + 1
    assert check.outcome().problem == f"raises KeyError: 'nothing here' (mine.py, line {line})"


def test_in_a_test_the_plugins_own_traceback_is_shown():
    for name in ("pictures do not mix", "half precision does"):
        (check,) = [check for check in checks_of(Stumbling, kind="projector") if str(check) == name]
        with pytest.raises(Violation, match="KeyError: 'nothing here'") as failed:
            check()
        cause = failed.value.__cause__
        assert isinstance(cause, KeyError)
        assert traceback.extract_tb(cause.__traceback__)[-1].name == "forward"


def test_a_sentence_that_comes_again_is_told_once():
    with pytest.raises(Violation) as failed:
        check_component(Stumbling, kind="projector")
    said = str(failed.value)
    assert said.count("raises KeyError: 'nothing here'") == 1
    assert "\n- every parameter learns: the same as `global randomness is left alone`" in said


def test_a_slow_tiny_is_told_how_long_it_takes(monkeypatch):
    monkeypatch.setattr(building, "MOST_SECONDS", 0.01)

    class Slow(Encoder):
        def __init__(self, config):
            time.sleep(0.02)
            super().__init__(config)

    assert "s to build from `Config.tiny()`, where" in outcome_of(Slow, "vision_encoder", "tiny is quick").problem
    assert not outcome_of(LargeTiny, "vision_encoder", "blocks are its parts").problem


class OfACheckpoint(Encoder):
    class Config(Encoder.Config):
        weights: str
        """A folder."""

        @classmethod
        def tiny(cls):
            return cls(weights="random")


def test_defaults_that_are_none_are_skipped():
    outcome = outcome_of(OfACheckpoint, "vision_encoder", "builds from its defaults on meta")
    assert outcome.skipped == "weights must be given: there are no defaults to build from"


class Pretrained(Encoder):
    class Config(Encoder.Config):
        weights: str = "somebody/something"
        """A hub id, a folder, or `random`."""

        def resolved(self):
            if self.weights != "random":
                raise AssertionError("asks the hub")
            return self


def test_pretrained_defaults_are_built_with_random_weights():
    assert outcome_of(Pretrained, "vision_encoder", "builds from its defaults on meta").result == "passed"


class WithoutWeights(nn.Module):
    """Nothing to learn: the means of rows, filled up with zeros."""

    class Config(ComponentConfig):
        pass

    def __init__(self, config, grid, text_dim):
        super().__init__()
        self.rows, self.num_tokens, self.missing = (grid.height, grid.width), grid.height, text_dim - grid.dim

    def forward(self, patches):
        return F.pad(patches.unflatten(1, self.rows).mean(dim=2), (0, self.missing))


def test_a_component_may_have_no_weights():
    assert all(not outcome.problem for outcome in check_component(WithoutWeights, kind="projector"))


def test_there_is_a_companion_of_every_kind():
    assert tuple(COMPANIONS) == KINDS
