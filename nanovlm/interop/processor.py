"""Transformers' ``Idefics3Processor`` for our model, with our template as its chat template."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from nanovlm.components import ImageSpec, Resample
from nanovlm.data.conversation import IMAGE_MARK, TextFormat

if TYPE_CHECKING:
    from nanovlm.model import VisionLanguageModel

FILTERS: dict[Resample, int] = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}  # Pillow's numbers
ANSWER = "\ue000"  # a private-use character: in no template

# A message's content may be a list of parts there, and pictures without a mark, before all text, stand where the image
# format has them: at the head of the message, or before everything, the template's own first words too. And what is
# asked is the beginning of the conversation, up to the answer, whether or not the template heeds add_generation_prompt.
OPENING = """\
{#- Pictures stand where they stand in the messages; where all come before any text, FRONT. -#}
{%- set seen = namespace(front="", text=false, in_place=IN_PLACE, messages=[]) -%}
{%- for message in messages -%}
  {%- if message.content is string -%}{%- set seen.text = true -%}{%- else -%}
    {%- for part in message.content -%}
      {%- if part.type != "image" -%}{%- set seen.text = true -%}
      {%- elif seen.text -%}{%- set seen.in_place = true -%}
      {%- else -%}{%- set seen.front = seen.front + "<image>" -%}{%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
  {%- set content -%}
    {%- if message.content is string -%}{{ message.content }}{%- else -%}
      {%- for part in message.content -%}
        {%- if part.type != "image" -%}{{ part.text }}{%- elif seen.in_place -%}{{ "<image>" }}{%- endif -%}
      {%- endfor -%}
    {%- endif -%}
  {%- endset -%}
  {%- set seen.messages = seen.messages + [{"role": message.role, "content": content}] -%}
{%- endfor -%}
{%- set asked = add_generation_prompt is defined and add_generation_prompt -%}
{%- set messages = seen.messages + ([{"role": "assistant", "content": "ANSWER"}] if asked else []) -%}
{%- set add_generation_prompt = false -%}
{%- if not seen.in_place -%}{{ seen.front }}{%- endif -%}
{#- The template of the model itself: -#}
{%- set rendered %}
""".replace("ANSWER", ANSWER).replace("<image>", IMAGE_MARK)
CLOSING = """{{ "" }}{% endset -%}
{{ rendered.split("ANSWER")[0].rstrip(" ") if asked else rendered }}""".replace("ANSWER", ANSWER)


def chat_template(text: TextFormat) -> str:
    """Our template for transformers' processors; a line break at its end means nothing to Jinja."""
    within = text.image_format.within_message
    opening = OPENING.replace("FRONT", "too" if within else "before everything").replace(
        "IN_PLACE", str(within).lower()
    )
    return opening + text.template.removesuffix("\n") + CLOSING


def processor_of(model: VisionLanguageModel, image: ImageSpec, preprocessor: dict[str, Any]) -> Any:
    """An ``Idefics3Processor``: pictures as the model's, and a copy of the tokenizer with the tokens that it adds."""
    from transformers import Idefics3Processor

    tokenizer: Any = copy.deepcopy(model.text.tokenizer)
    tokenizer.chat_template = None
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer("")["input_ids"]:  # tokens around any text, where ours has none but those of its template
        tokenizer.add_bos_token = tokenizer.add_eos_token = False
    # Without do_resize it still resizes to the square of max_image_size; do_resize is what it does before that.
    options = {
        "do_image_splitting": False,
        "do_resize": image.longest_edge > 0,
        "size": {"longest_edge": image.longest_edge or image.size},
        "max_image_size": {"longest_edge": image.size},
        "resample": FILTERS[image.resample],
    }
    return Idefics3Processor(
        image_processor(options | preprocessor),
        tokenizer,
        image_seq_len=model.num_image_tokens,
        chat_template=chat_template(model.text),
    )


def image_processor(options: dict[str, Any]) -> Any:
    """Idefics3's, by torchvision, or where that is not installed by Pillow; the files are the same."""
    import transformers

    try:
        return transformers.Idefics3ImageProcessor(**options)
    except ImportError:
        return transformers.Idefics3ImageProcessorPil(**options)


def generation_config(model: VisionLanguageModel, processor: Any) -> Any:
    """Greedy, as here: up to our stop ids, and never a token that ours has not."""
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=False,
        max_new_tokens=64,
        eos_token_id=sorted(model.text.stop_ids),
        pad_token_id=processor.tokenizer.pad_token_id,
        suppress_tokens=added_ids(model, processor) or None,
    )


def added_ids(model: VisionLanguageModel, processor: Any) -> list[int]:
    """The ids that Idefics3's processor added behind those of our tokenizer."""
    return list(range(len(model.text.tokenizer), len(processor.tokenizer)))
