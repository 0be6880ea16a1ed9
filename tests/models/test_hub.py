"""Names that are neither a folder nor on the hub are answered at once, and the folder that was meant is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from mgsr.models import hub, load_causal_lm, load_tokenizer, save_model_folder, shape_of_causal_lm
from mgsr.runtime import network
from mgsr.runtime.errors import UserError
from tests.models.small import tiny_model, tiny_tokenizer


class Client:
    """A hub's client whose one way out fails, and counts how often it was taken."""

    asked = 0

    def head(self, *_: Any, **__: Any) -> Any:
        self.asked += 1
        raise OSError("Name or service not known")


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Client:
    one = Client()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"https://{tmp_path.name}.invalid")
    monkeypatch.setattr(network, "get_session", lambda: one)
    monkeypatch.chdir(tmp_path)
    save_model_folder(tiny_model(), tiny_tokenizer(), tmp_path / "runs" / "student")
    return one


@pytest.mark.parametrize("load", [load_tokenizer, load_causal_lm, shape_of_causal_lm])
def test_a_hub_that_does_not_answer_is_asked_once(client: Client, load: Any, caplog: Any) -> None:
    for _ in range(2):
        with pytest.raises(UserError, match=r"hub cannot be reached.*did you mean `runs/student`\?") as caught:
            load("runs/studnet")
        assert "\n" not in str(caught.value)
    assert client.asked == 1 and "Retry" not in caplog.text


def test_a_hint_names_what_lies_beside(client: Client, tmp_path: Path) -> None:
    for wrong, right in (
        ("runs/studnet", "runs/student"),
        ("./runs/studen", "runs/student"),
        ("run", "runs"),
        (str(tmp_path / "runs/stdent"), str(tmp_path / "runs/student")),
    ):
        assert hub.near_names(wrong) == f"; did you mean `{right}`?"
    assert hub.near_names("nobody/nothing") == "" == hub.near_names("\0")
    with pytest.raises(UserError, match=r"`\./runs/studen` does not exist.*did you mean `runs/student`"):
        load_causal_lm("./runs/studen")


def test_a_hub_that_answers_is_used(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    class Answer:
        status_code = 401

    monkeypatch.setattr(client, "head", lambda *_, **__: Answer(), raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "https://answers.invalid")
    assert network.is_reachable()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert not network.is_reachable()
