import json

import pytest
import torch
from broken_options import plugin
from command import nanovlm

BROKEN = plugin("").replace("    pass\n", "    def forward(self, patches):\n        return patches[..., :1] * 0\n")


@pytest.fixture
def broken(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(BROKEN, encoding="utf-8")
    return file


def row(out: str, check: str) -> str:
    (line,) = [line for line in out.splitlines() if line.startswith(f"│ {check} ")]
    return line


def test_a_sound_component_passes_with_status_0():
    done = nanovlm("check", "pixel_shuffle")
    assert done.status == 0
    assert "passed" in row(done.out, "tokens as promised")
    expected = "passed" if torch.cuda.is_available() else "torch sees no GPU here"
    assert expected in row(done.out, "runs on cuda")
    last = done.out.strip().splitlines()[-1]
    assert last.startswith("projector pixel_shuffle: ")
    assert " passed, " in last
    assert "failed" not in last


def test_a_broken_one_fails_with_status_1_and_a_sentence_for_each_failure(broken):
    done = nanovlm("check", "mine", "--plugin", broken)
    assert done.status == 1
    assert done.err == ""
    assert "failed" in row(done.out, "tokens as promised")
    assert "gives (1, 16, 1) for patches (1, 16, 16) of a 4 x 4 grid; with num_tokens=4" in done.out
    assert "projector mine: " in done.out
    assert " failed" in done.out.strip().splitlines()[-1]


def test_as_json(broken):
    done = nanovlm("check", "mine", "--plugin", broken, "--json")
    found = json.loads(done.out)
    assert done.status == 1
    assert (found["kind"], found["name"], found["passed"]) == ("projector", "mine", False)
    assert found["plugin"] == str(broken)
    results = {check["check"]: check for check in found["checks"]}
    assert results["tokens as promised"]["result"] == "failed"
    assert results["tokens as promised"]["reason"].startswith("gives (1, 16, 1)")
    assert results["options are documented"]["result"] == "passed"
    assert all(check["says"] and check["seconds"] >= 0 for check in found["checks"])


def test_what_takes_long_is_said_how_long(broken, monkeypatch):
    monkeypatch.setattr("nanovlm.cli.check.SLOW", 0.0)
    assert "took 0.0 s" in row(nanovlm("check", "mine", "--plugin", broken).out, "options are documented")


def test_an_unknown_name_is_the_users_error():
    done = nanovlm("check", "pixel_shufle")
    assert (done.status, done.out) == (2, "")
    assert "unknown component 'pixel_shufle'. Did you mean 'pixel_shuffle'?" in done.err


def test_the_kind_chooses():
    assert "unknown dataset 'mlp'" in nanovlm("check", "mlp", "--kind", "dataset").err
    assert nanovlm("check", "mlp", "--kind", "encoder").status == 2
