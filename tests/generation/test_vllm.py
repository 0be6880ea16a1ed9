"""The contract of a serving engine, with one that obeys it and has weights of its own."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import mgsr.rounds.writer
from mgsr.config.schema import ExperimentConfig
from mgsr.generation import LanguageModel
from mgsr.generation.vllm import EngineWriter, Request, VllmEngine
from mgsr.runtime.errors import ConfigError, UserError
from mgsr.scrg import revise
from mgsr.training.run_folder import run_folder
from mgsr.training.train import train
from tests.scrg.tiny import BUDGET, EOS, tiny

PROMPTS = [(7, (3, 4, 5)), (8, (6,)), (9, (4, 9, 3, 5, 8))]


class FakeEngine:
    """Decodes one request at a time with a generator seeded by it, from a copy of the weights."""

    def __init__(self, model: Any, eos: int = EOS) -> None:
        self.model, self.eos = copy.deepcopy(model).eval(), eos
        self.handed_over = 0
        self.requests: list[Request] = []

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        self.model.load_state_dict({name: value.clone() for name, value in weights})
        self.handed_over += 1

    def generate(self, requests: Sequence[Request]) -> list[list[int]]:
        self.requests += requests
        return [self._one(request) for request in requests]

    def _one(self, request: Request) -> list[int]:
        generator, new = torch.Generator().manual_seed(request.seed), []
        while len(new) < request.max_new_tokens and (not new or new[-1] != self.eos):
            with torch.no_grad():
                logits = self.model(input_ids=torch.tensor([[*request.token_ids, *new]])).logits[0, -1]
            new.append(int(torch.multinomial(logits.softmax(-1), 1, generator=generator)))
        return new


def student_of(engine: FakeEngine, model: Any, batch_size: int = 32) -> EngineWriter:
    return EngineWriter(
        engine, LanguageModel(model, eos_token_id=EOS, max_new_tokens=BUDGET, batch_size=batch_size)
    )


def round_of(batch_size: int, order: Sequence[int] = (0, 1, 2)) -> tuple[FakeEngine, dict[int, Any]]:
    model, teacher = tiny("llama", 0), tiny("llama", 1)
    engine = FakeEngine(model)
    scorer = LanguageModel(teacher, eos_token_id=EOS, max_new_tokens=BUDGET)
    made = revise(
        student_of(engine, model, batch_size),
        scorer,
        [PROMPTS[i] for i in order],
        passes=2,
        max_new_tokens=BUDGET,
        eos_token_id=EOS,
        seed=3,
    )
    return engine, {sequence.example_id: sequence for sequence in made}


def test_corrections_go_on_from_the_corrected_prefix() -> None:
    engine, made = round_of(32)
    assert all(sequence.corrections for sequence in made.values())
    for sequence in made.values():
        first = sequence.corrections[0]
        prefix = (*sequence.prompt_ids, *sequence.rollout_ids[: first.position], first.teacher_token)
        asked = [r for r in engine.requests if tuple(r.token_ids) == prefix]
        ended = first.teacher_token == EOS or first.position + 1 == BUDGET
        assert ended or asked[0].max_new_tokens == BUDGET - first.position - 1
    assert len({request.seed for request in engine.requests}) == len(engine.requests)


def test_text_does_not_depend_on_batch_or_order() -> None:
    assert round_of(32)[1] == round_of(1)[1] == round_of(2, (2, 0, 1))[1]


def test_weights_are_handed_over_once_per_round(
    make_config: Callable[..., ExperimentConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    engines: list[FakeEngine] = []

    def build(config: Any, student: Any, tokenizer: Any, vocab_size: int, stop_ids: Any) -> FakeEngine:
        assert list(stop_ids) == [tokenizer.eos_token_id]
        engines.append(FakeEngine(student, tokenizer.eos_token_id))
        # whatever it was built with, the weights that count are those handed over
        torch.nn.init.zeros_(engines[0].model.get_input_embeddings().weight)
        return engines[0]

    monkeypatch.setattr(mgsr.rounds.writer, "_vllm_engine", build)
    # that it is installed is looked at before the run
    found = ModuleType("vllm")
    found.__spec__ = ModuleSpec("vllm", None)
    monkeypatch.setitem(sys.modules, "vllm", found)
    config = make_config("train.epochs=2", "scrg.backend=vllm")
    train(config)
    assert len(engines) == 1 and engines[0].handed_over == 2
    path = run_folder(config) / "scrg" / "round=1"
    entries = [json.loads(line) for shard in path.glob("shard-*.jsonl") for line in shard.open()]
    rollouts = {tuple(entry["prompt_ids"]): entry["rollout_ids"] for entry in entries}
    whole = [r for r in engines[0].requests if tuple(r.token_ids) in rollouts and r.max_new_tokens == 6]
    # the last round's text is what the engine writes with the weights it was given last
    again = {tuple(r.token_ids): engines[0]._one(r) for r in whole[-len(rollouts) :]}
    assert again == rollouts


class FakeVllm(SimpleNamespace):
    """As much of vLLM as is used."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        model = SimpleNamespace(load_weights=lambda weights: self.calls.append(("load", list(weights))))
        runner = SimpleNamespace(model_runner=SimpleNamespace(model=model))
        core = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=runner))
        made = SimpleNamespace(
            llm_engine=core,
            reset_prefix_cache=lambda: self.calls.append(("reset", None)),
            generate=self.generate,
        )
        super().__init__(LLM=lambda **options: self.calls.append(("LLM", options)) or made, __version__="0")
        self.SamplingParams = lambda **options: options

    def generate(self, prompts: Any, parameters: Any, use_tqdm: bool) -> Any:
        self.calls.append(("generate", (prompts, parameters)))
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=(9, EOS))]) for _ in prompts]


def test_vllm_is_asked_for_whole_distributions_with_a_seed_per_request(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeVllm()
    monkeypatch.setitem(sys.modules, "vllm", fake)
    engine = VllmEngine("folder", eos_ids=[EOS], max_length=40, memory=0.3, dtype="float32", vocab_size=11)
    engine.load_weights([("w", torch.ones(1))])
    assert engine.generate([Request([3, 4], 5, 1), Request([6], 2, 8)]) == [[9, EOS], [9, EOS]]
    names = [name for name, _ in fake.calls]
    assert names == ["LLM", "load", "reset", "generate"]
    assert fake.calls[0][1]["enable_prefix_caching"] and fake.calls[0][1]["max_model_len"] == 40
    prompts, parameters = fake.calls[3][1]
    assert prompts == [{"prompt_token_ids": [3, 4]}, {"prompt_token_ids": [6]}]
    assert [p["max_tokens"] for p in parameters] == [5, 2] and [p["seed"] for p in parameters] == [1, 8]
    for p in parameters:
        assert (p["temperature"], p["top_p"], p["top_k"], p["stop_token_ids"]) == (1.0, 1.0, -1, [EOS])
        assert p["allowed_token_ids"] == list(range(11))


def test_without_vllm_the_user_is_told(
    make_config: Callable[..., ExperimentConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"pip install 'vllm>="):
        train(make_config("train.epochs=1", "scrg.backend=vllm"))
    with pytest.raises(ConfigError, match=r"scrg\.text=student"):
        make_config("scrg.backend=vllm", "scrg.text=teacher")


def test_an_engine_that_does_not_fit_is_not_answered_with_smaller_batches(
    make_config: Callable[..., ExperimentConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def build(*_: Any) -> FakeEngine:
        asked.append(1)
        raise torch.OutOfMemoryError("out of memory: the engine")

    monkeypatch.setattr(mgsr.rounds.writer, "_vllm_engine", build)
    # that it is installed is looked at before the run
    found = ModuleType("vllm")
    found.__spec__ = ModuleSpec("vllm", None)
    monkeypatch.setitem(sys.modules, "vllm", found)
    with pytest.raises(UserError, match=r"vLLM's engine does not fit beside the models \(`scrg\.vllm_memory`"):
        train(make_config("train.epochs=1", "scrg.backend=vllm"))
    assert asked == [1]
