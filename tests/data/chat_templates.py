"""Chat templates in the styles that published models have, and a tokenizer that knows their tokens."""

from __future__ import annotations

from typing import Any, NamedTuple

from tokenizers import AddedToken, processors
from transformers import PreTrainedTokenizerFast

from mgsr.data.tokenizer import train_tokenizer

TEXTS = ["What is red? The cat is red.", "Answer briefly. user system assistant model", "The dog saw it."] * 5

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
INST = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant, beginning with user') }}{% endif %}"
    "{% if message.role == 'user' %}[INST] {{ message.content }} [/INST]"
    "{% else %} {{ message.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}\n"
    "{{ message.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
THOUGHTS = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
EMPTY_THOUGHTS = CHATML.replace(
    "{{ message.content }}",
    "{% if loop.last and message.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ message.content }}",
)
NO_END = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}" + (
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
# the whole is trimmed, so that a prompt of several lines is no longer its beginning
TRIMMED = (
    "{% for message in messages %}{% if message.role == 'user' %}### {{ message.content if add_generation_prompt "
    "else message.content | trim }}\n{% else %}{{ message.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


class Style(NamedTuple):
    """A template, the token that ends its turns, and whether its prompts begin with a beginning of text."""

    text: str
    end: str
    bos: bool = False


STYLES = {
    "chatml": Style(CHATML, "<|im_end|>"),
    "headers": Style(HEADERS, "<|eot_id|>", bos=True),
    "inst": Style(INST, "<eos>", bos=True),
    "gemma": Style(GEMMA, "<end_of_turn>", bos=True),
    "empty thoughts": Style(EMPTY_THOUGHTS, "<|im_end|>"),
    "no end": Style(NO_END, "<eos>"),
    "trimmed": Style(TRIMMED, "<eos>"),
}
MARKS = ["<s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
MARKS += ["<start_of_turn>", "<end_of_turn>"]


def chat_tokenizer(template: Any = CHATML, *, front: bool = True, end: str = "<eos>") -> PreTrainedTokenizerFast:
    """Pad 0, eos 1; as Llama's it puts a beginning of text before what is encoded, unless `front` is false.

    `<think>` and a run of two spaces are added tokens too, though not special, as published tokenizers have them.
    """
    tokenizer = train_tokenizer(TEXTS, vocab_size=300)
    tokenizer.add_special_tokens({"bos_token": "<s>", "extra_special_tokens": MARKS[1:], "eos_token": end})
    tokenizer.add_tokens([AddedToken(text, special=False) for text in ("<think>", "</think>", "  ")])
    if front:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
        )
    tokenizer.chat_template = template
    return tokenizer
