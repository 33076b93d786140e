"""``nanovlm export --to transformers``: a folder that transformers loads without nanovlm, and nanovlm without change.

The folder holds an Idefics3 with its processor, a README.md that says how to use it and what differs, and in
``nanovlm/`` our own config and tokenizer with the names that our tensors have in it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from nanovlm.files import write_whole
from nanovlm.interop.agreement import differences, largest_difference, load_exported
from nanovlm.interop.exported import EXPORTED, NAMES
from nanovlm.interop.idefics3 import names_of, parts_of, to_idefics3
from nanovlm.interop.plain import merge, round_to
from nanovlm.interop.processor import added_ids, generation_config, processor_of
from nanovlm.model import VisionLanguageModel
from nanovlm.model_folder import kept_plugins, replaced, write_config
from nanovlm.plugins import Registries
from nanovlm.weights import quiet

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Exported:
    """What was written, and what is known of it.

    added: the tokens that transformers needs and ours have not
    logits: how far they are off over our vocabulary, in fp32, given equal pixels and ids
    differs: in words, what its processor does otherwise than nanovlm
    """

    folder: Path
    added: tuple[str, ...]
    logits: float
    differs: tuple[str, ...]

    @property
    def lines(self) -> list[str]:
        """For the terminal."""
        lines = [f"{self.folder}: an Idefics3ForConditionalGeneration with its processor"]
        lines += [f"  given equal pixels and ids, its logits are within {self.logits:.1g} of nanovlm's"]
        lines += [f"  added to the vocabulary, and never said: {', '.join(self.added)}"] if self.added else []
        if not self.differs:
            return [*lines, "  its processor gives the model the same ids and pixels as nanovlm"]
        lines += ["  its processor differs from nanovlm, so end-to-end answers may, too:"]
        return lines + [f"    {line}" for text in self.differs for line in f"- {text}".split("\n")]


def export_folder(model: VisionLanguageModel, folder: Path, dtype: str = "fp32") -> None:
    """Write a plain model folder: LoRA merged, and the weights in ``dtype``. The model is changed in the same way."""
    merge(model)
    round_to(model, DTYPES[dtype])
    model.save_pretrained(folder, DTYPES[dtype])


def export_transformers(
    model: VisionLanguageModel, folder: Path, registries: Registries, dtype: str = "fp32"
) -> Exported:
    """Write a folder for transformers: LoRA merged, weights in ``dtype``. The model is changed in the same way.

    Raises ConfigError where transformers cannot express a component, CheckpointError where its logits differ, and then
    writes nothing.
    """
    merge(model.cpu().eval())
    parts = parts_of(model, registries)
    round_to(model, DTYPES[dtype])
    processor = processor_of(model, model.vision_encoder.image, parts["vision_encoder"].preprocessor)
    written = to_idefics3(model, parts, processor.tokenizer, processor.image_token_id).to(DTYPES[dtype])
    written.generation_config = generation_config(model, processor)
    with replaced(folder) as part:
        with quiet():
            written.save_pretrained(part)
            processor.save_pretrained(part)
        own = part / EXPORTED
        own.mkdir()
        write_config(model.blueprint, model.text.template, own, kept_plugins(model.folder))
        model.text.tokenizer.save_pretrained(str(own))
        write_whole(own / NAMES, json.dumps(names_of(written, parts), indent=1) + "\n")
        again, again_processor = load_exported(part)
        added = tuple(again_processor.tokenizer.convert_ids_to_tokens(added_ids(model, processor)))
        logits = largest_difference(model, again, again_processor)
        exported = Exported(folder, added, logits, tuple(differences(model, again_processor)))
        (part / "README.md").write_text(readme(exported), encoding="utf-8")
    return exported


def readme(exported: Exported) -> str:
    """How to use the folder, and what differs."""
    differs = "".join(_bullet(*text.partition("\n")) for text in exported.differs)
    agrees = (
        "Its processor differs from nanovlm's way of preparing a question, so that answers may differ, too:\n\n"
        f"{differs}\nGiven ids and pixels made by nanovlm, they agree; it is made for models that were trained with "
        "`image_format: idefics3`."
        if differs
        else "Its processor gives the model the same token ids and pixels as nanovlm."
    )
    tokens = ", ".join(f"`{token}`" for token in exported.added)
    added = f"These tokens were added, are not trained, and `generation_config.json` suppresses them: {tokens}."
    return README.format(logits=f"{exported.logits:.1g}", agrees=agrees, added=added if tokens else "")


def _bullet(text: str, more: str, lines: str) -> str:
    """An entry of a list in Markdown, with further lines as they are."""
    return f"- {text}\n" + (f"\n  ```text\n{lines}\n  ```\n\n" if more else "")


README = """\
# A model trained with nanovlm, for transformers

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained(FOLDER)
model = AutoModelForImageTextToText.from_pretrained(FOLDER)
content = [{{"type": "image", "path": "picture.png"}}, {{"type": "text", "text": "What is in the picture?"}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
)
ids = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
print(processor.batch_decode(ids, skip_special_tokens=True)[0])
```

It is an `Idefics3ForConditionalGeneration` (transformers 5.6 or newer). Given equal pixels and token ids, its logits
over the model's own vocabulary were within {logits} of nanovlm's in fp32, when this folder was written.

{agrees}

Besides, the processor takes the names of special tokens within a question for those tokens; in nanovlm they are text.
{added}

nanovlm loads this folder, too, without any change to the model: `nanovlm generate --model FOLDER ...`.
"""
