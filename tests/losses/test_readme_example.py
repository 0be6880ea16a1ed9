"""README's example of the losses alone runs, and scores the tokens it says."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from transformers import PreTrainedModel

from mgsr.losses import dac_kl
from tests.scrg.tiny import tiny

README = Path(__file__).parents[2] / "README.md"


def test_the_example_trains_the_student_on_response_tokens() -> None:
    section = README.read_text(encoding="utf-8").split("## The losses alone")[1]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert code is not None
    teacher, student = tiny("llama").eval(), tiny("gpt2").eval()
    assert isinstance(student, PreTrainedModel)
    input_ids = torch.tensor([[3, 4, 5, 6]])
    is_response = torch.tensor([[False, False, True, True]])
    found = {"torch": torch, "teacher": teacher, "student": student, "input_ids": input_ids}
    exec(code.group(1), found | {"is_response": is_response} | {"__name__": "example"}, scope := {})
    assert any(p.grad is not None and bool(p.grad.any()) for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    # state t - 1 predicts token t
    expected = dac_kl(teacher(input_ids).logits[:, 1:3], student(input_ids).logits[:, 1:3], 0.0, 0.95).loss
    torch.testing.assert_close(scope["loss"][:, 2:], expected)
