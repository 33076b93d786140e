"""Experiments, plugins, pictures and model folders that are wrong, each in its own way."""

import json
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import QUICKSTART, tiny_model

FILES = {
    "broken.yaml": "seed: 1\nprojector: {name: pixel_shuffle\ntraining: 3\n",
    "twice.yaml": "seed: 1\nseed: 2\n",
    "list.yaml": "- seed\n",
    "circle.yaml": "extends: back.yaml\n",
    "back.yaml": "extends: circle.yaml\n",
    "orphan.yaml": "extends: nowhere.yaml\n",
    "two_budgets.yaml": f"extends: {QUICKSTART}\ntraining: {{steps: 3, epochs: 1}}\n",
    "no_budget.yaml": f"extends: {QUICKSTART}\ntraining: {{steps: 0}}\n",
    "not_import.py": "import no_such_module\n",
    "syntax.py": "def (:\n",
    "nothing.py": "answer = 42\n",
    "misspelt.py": "from nanovlm import hookimpl\n@hookimpl\ndef register_projector(register): pass\n",
    "no_config.py": "from nanovlm import hookimpl\nclass Bare: pass\n"
    "@hookimpl\ndef register_projectors(register): register('bare', Bare)\n",
    "rival.py": "from nanovlm import hookimpl\nfrom nanovlm_plugins.pixel_shuffle import PixelShuffle\n"
    "@hookimpl\ndef register_projectors(register): register('pixel_shuffle', PixelShuffle)\n",
    "no_picture.png": "text",
}


def fill(folder: Path) -> Path:
    """Write them all."""
    for name, content in FILES.items():
        (folder / name).write_text(content)
    Image.new("RGB", (20, 20), "red").save(folder / "red.png")
    (folder / "empty").mkdir()
    (folder / "full").mkdir()
    (folder / "full" / "precious.txt").touch()
    tiny_model().save_pretrained(folder / "model")
    damage(folder / "model", folder)
    return folder


def damage(model: Path, folder: Path) -> None:
    """Copies of a model folder, each with something wrong."""
    tensors, config = load_file(model / "model.safetensors"), json.loads((model / "config.json").read_text())
    weight = "projector.linear.weight"
    wrong = {
        "missing": {name: tensor for name, tensor in tensors.items() if name != weight},
        "unexpected": tensors | {"projector.linear.bias": torch.zeros(24)},
        "misshapen": tensors | {weight: torch.zeros(24, 8)},
    }
    for name, content in wrong.items():
        (folder / name).mkdir()
        save_file(content, folder / name / "model.safetensors")
        (folder / name / "config.json").write_text(json.dumps(config))
    others = {
        "no_weights": json.dumps(config),
        "no_json": "{",
        "stranger": '{"model_type": "llama"}',
        "unknown_projector": json.dumps(config | {"projector": {"name": "pixel_shufle"}}),
    }
    for name, text in others.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(text)
