"""Plain sampling from one GGUF file, batch 32: mgsr and `generate` beside OpenVINO, an engine for CPUs.

All sample at temperature 1, 32 prompts of a data file, at most 64 new tokens. OpenVINO keeps the weights as the
file has them, packed in few bits; mgsr and `generate` unpack them.
"""

from __future__ import annotations

from typing import Any

import torch

from experiments.bench import rounds
from experiments.bench.measure import measure
from experiments.bench.pair import Pair
from mgsr import models
from mgsr.config.schema import DataConfig
from mgsr.data.row_files import read_rows
from mgsr.data.splits import encode
from mgsr.training.fsdp import working

NEW, BATCH = 64, 32
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


def case(name: str, gguf: str, data: str) -> dict[str, Any]:
    """`name`: who, and in which type, as in "openvino_bfloat16"."""
    who, dtype = name.rsplit("_", 1)
    tokenizer = models.load_tokenizer(gguf)
    lengths = DataConfig(max_length=192, max_prompt_length=128)
    examples = encode(read_rows(data)[:BATCH], tokenizer, lengths, data).examples
    prompts = [(e.id, e.prompt_ids) for e in examples]
    tokens: list[int] = []
    if who == "openvino":
        sample = _openvino(gguf, [list(ids) for _, ids in prompts], PRECISIONS[dtype])
        result = measure(lambda: tokens.append(sample()), repeats=3)
    else:
        with working(models.load_causal_lm(gguf), getattr(torch, dtype)) as model:
            pair = Pair(model, model, tokenizer, prompts, len(tokenizer), NEW, BATCH)
            result = measure(lambda: tokens.append(rounds.CASES[f"{who}_sampling"](pair)), repeats=3)
    return {**result, "tokens": tokens[-1]}


def _openvino(gguf: str, prompts: list[list[int]], precision: str) -> Any:
    """One call samples all prompts and returns the number of tokens."""
    import numpy as np
    import openvino
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    # GiB of keys and values
    scheduler.cache_size, scheduler.max_num_seqs, scheduler.max_num_batched_tokens = 2, BATCH, 8192
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": precision}
    pipeline = openvino_genai.ContinuousBatchingPipeline(gguf, scheduler, "CPU", settings)
    options = openvino_genai.GenerationConfig()
    options.do_sample, options.temperature, options.top_k, options.top_p = True, 1.0, 0, 1.0
    options.max_new_tokens, options.rng_seed = NEW, 0
    inputs = [openvino.Tensor(np.array([ids], dtype=np.int64)) for ids in prompts]

    def sample() -> int:
        return sum(len(found.m_generation_ids[0]) for found in pipeline.generate(inputs, [options] * len(inputs)))

    return sample


CASES = tuple(f"{who}_{dtype}" for dtype in PRECISIONS for who in ("mgsr", "generate", "openvino"))
