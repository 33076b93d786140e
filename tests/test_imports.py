"""What the bare core must not need, and what nothing may import before it is used."""

import subprocess
import sys
import time

import pytest
from tiny import QUICKSTART

HEAVY = ("transformers", "timm", "datasets", "wandb", "peft", "scipy", "matplotlib", "submitit")

REFUSING = f"""
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY}:
            raise ModuleNotFoundError(f"{{name}} is not here", name=name)

sys.meta_path.insert(0, Refuse())
"""

ONE_STEP = f"""
import torch
import nanovlm
from nanovlm.blueprint import Recipe
from nanovlm.data.conversation import Tokens
from nanovlm.data.packing import Example, pack_row
from nanovlm.training.optimizer import Optimizer
from nanovlm.training.precision import Precision

recipe = Recipe.of(nanovlm.load_experiment({str(QUICKSTART)!r}), nanovlm.load_plugins())
model = nanovlm.VisionLanguageModel(recipe.blueprint)
size = model.vision_encoder.image.size
tokens = Tokens(torch.randint(257, (40,)).tolist(), [i > 20 for i in range(40)], [0])
examples = [Example(tokens, torch.randint(256, (1, 3, size, size), dtype=torch.uint8)) for _ in range(4)]
row = pack_row(examples, model.num_image_tokens)
optimizer = Optimizer(model, recipe.experiment.training, 3, Precision("fp32", torch.device("cpu")))
losses = []
for _ in range(3):
    loss = model(row) / row.num_targets
    optimizer.backward(loss)
    optimizer.step()
    losses.append(float(loss.detach()))
print(losses[0] > losses[-1])
"""


BASELINE = f"""
from nanovlm.cli import main
sys.argv = ["nanovlm", "plan", {str(QUICKSTART.with_name("baseline.yaml"))!r}]
try:
    main()
except SystemExit as end:
    assert not end.code
"""


LIST = """
import sys
from nanovlm.cli import main
sys.argv = ["nanovlm", "list"]
try:
    main()
finally:
    print(*sys.modules)
"""


def python(program: str) -> str:
    """What ``program`` prints, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_refusal_itself_works():
    with pytest.raises(AssertionError, match="transformers is not here"):
        python(f"{REFUSING}\nimport transformers")


def test_the_bare_core_plans_and_trains_without_the_heavy_libraries():
    planned, learnt = python(REFUSING + BASELINE + ONE_STEP).rstrip().rsplit("\n", 1)
    assert "222,081,600" in planned
    assert learnt == "True"


@pytest.fixture(scope="module")
def listed() -> tuple[float, set[str]]:
    """``nanovlm list``: how long it takes at best, and what it imports."""
    times, printed = zip(*(timed(LIST) for _ in range(2)), strict=True)
    return min(times), set(printed[0].splitlines()[-1].split())


def timed(program: str) -> tuple[float, str]:
    start = time.perf_counter()
    printed = python(program)
    return time.perf_counter() - start, printed


def test_listing_the_plugins_imports_none_of_the_heavy_libraries(listed):
    _, modules = listed
    assert "nanovlm_plugins.hf_vision" in modules
    assert modules.isdisjoint(HEAVY)


def test_the_list_takes_little_longer_than_torch(listed):
    """The best of two runs each: the machine may be busy with something else."""
    seconds, _ = listed
    assert seconds < 2.5 * min(timed("import torch")[0] for _ in range(2))
