"""`make first-hour`: what a newcomer does with models and rows of his own, from a wheel, in a fresh folder.

    python -m tests.reliability.first_hour [--keep FOLDER] [--python PYTHON] [--wheel WHEEL]

Every command is the installed `mgsr`; each is printed, and the first that does not do what README says ends it.
The models are tiny chat models made here, with random weights, so that nothing is downloaded but packages.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from mgsr.data.rows import Row
from mgsr.data.synthetic import generate_rows

ROOT = Path(__file__).parents[2]
ROWS = 60
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMALL = (
    "data.max_length=96",
    "data.max_prompt_length=64",
    "scrg.max_new_tokens=12",
    "evaluation.max_new_tokens=12",
)
TASK = """\
task: own_rows
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{completion}}}}"
generation_kwargs: {{max_gen_toks: 12, until: []}}
metric_list: [{{metric: bleu}}]
"""


class Door:
    """A fresh folder, and the commands that are run there."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder, self.programs = folder, programs
        # neither the checkout nor a hub is there
        self.environ = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1", "COLUMNS": "100"}
        self.environ.pop("PYTHONPATH", None)

    def run(self, *words: str | Path, code: int = 0, said: str = "") -> str:
        """What a command prints; it has to end with this code, and say this.

        Raises:
            SystemExit: it does not.
        """
        return self.ended(self.begun(*words), code, said)

    def begun(self, *words: str | Path) -> subprocess.Popen[str]:
        print(f"$ {' '.join(map(str, words))}", flush=True)
        return subprocess.Popen(
            [self.programs / words[0], *words[1:]],
            cwd=self.folder,
            env=self.environ,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def ended(self, process: subprocess.Popen[str], code: int, said: str) -> str:
        text = process.communicate()[0]
        print("".join(f"  {line}\n" for line in text.splitlines()[-40:]), flush=True)
        if process.returncode != code or said not in text or "Traceback" in text:
            raise SystemExit(f"ended with {process.returncode} for {code}; wanted to read {said!r}")
        return text

    def interrupt(self, *words: str, when: Callable[[], bool], said: str) -> None:
        """Run a command and press Ctrl-C as soon as `when` holds."""
        process = self.begun(*words)
        while process.poll() is None and not when():
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        self.ended(process, 130, said)


def make_models(folder: Path, texts: list[str]) -> None:
    """A teacher and a student of one family, with a chat template, as anybody's folders are."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from mgsr.data.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(texts, vocab_size=400)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = TEMPLATE
    for name, width, layers in (("teacher", 48, 4), ("student", 32, 2)):
        torch.manual_seed(layers)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=256,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        LlamaForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def asked(row: Row) -> str:
    return f"{row.instruction}\n{row.input}".strip()


def write_rows(folder: Path, rows: list[Row]) -> list[str]:
    """The same rows in every format; the names of the files."""
    import pyarrow
    from pyarrow import parquet

    def lines(objects: list[dict[str, object]]) -> bytes:
        return "".join(json.dumps(each) + "\n" for each in objects).encode()

    turns = [
        {"messages": [{"role": "user", "content": asked(r)}, {"role": "assistant", "content": r.output}]}
        for r in rows
    ]
    turns[0]["messages"] = [{"role": "system", "content": "Be brief."}, *turns[0]["messages"]]
    (folder / "messages.jsonl").write_bytes(lines(list(turns)))
    pairs = [{"prompt": asked(r), "completion": r.output, "source": None} for r in rows]
    (folder / "pairs.jsonl.gz").write_bytes(gzip.compress(lines(list(pairs))))
    (folder / "pairs.jsonl").write_bytes(lines(list(pairs)))
    tasks = [{"instruction": r.instruction, "input": r.input or None, "output": [r.output]} for r in rows]
    (folder / "tasks.json").write_text(json.dumps(tasks), encoding="utf-8")
    with (folder / "questions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([("id", "question", "answer"), *((r.id, asked(r), r.output) for r in rows)])
    nested = [{"ask": {"text": asked(r)}, "reply": {"text": r.output}} for r in rows]
    parquet.write_table(pyarrow.Table.from_pylist(nested), folder / "nested.parquet")
    return ["messages.jsonl", "pairs.jsonl.gz", "tasks.json", "questions.csv", "nested.parquet"]


def walk(door: Door) -> None:
    """The first hour, in README's order."""
    folder = door.folder
    rows = generate_rows("train", ROWS, seed=0)
    make_models(folder, [text for row in rows for text in (asked(row), row.output)])
    files = write_rows(folder, rows)

    door.run("mgsr", "config", "--list", said="baselines")
    door.run("mgsr", "doctor", code=1, said="mgsr init")
    own = ("teacher.source=teacher", "student.source=student", "data.train=messages.jsonl", "data.template=chat")
    (folder / "my.yaml").write_text(door.run("mgsr", "init", *own), encoding="utf-8")
    for file in files:
        fields = ["data.fields.instruction=ask.text", "data.fields.output=reply.text"] if "nested" in file else []
        door.run("mgsr", "doctor", "my.yaml", f"data.train={file}", *fields, *SMALL, said="ready")

    train = ("mgsr", "train", "my.yaml", *SMALL, "experiment=mine", "train.max_steps=60", "train.batch_size=4")
    run = folder / "runs/mine/main/seed=0"
    door.interrupt(*train, when=lambda: (run / "scrg/round=0/text.json").exists() or begun(run), said="--resume")
    door.run("mgsr", "train", "--resume", run.relative_to(folder), said="ROUGE-L")
    door.run("mgsr", "texts", run.relative_to(folder), "--number", "2")
    door.run(
        "mgsr", "evaluate", run.relative_to(folder), "--data", "questions.csv", "--seeds", "10", said="questions"
    )
    door.run("mgsr", "export", run.relative_to(folder), "exported", said="exported")
    door.run("mgsr", "evaluate", "exported", "--data", "messages.jsonl", "--seeds", "10", said="<|im_end|>")

    ask = (
        "from transformers import pipeline; write = pipeline('text-generation', model='exported'); "
        "print(write([{'role': 'user', 'content': 'Say it.'}], max_new_tokens=12)[0]['generated_text'][-1])"
    )
    door.run("python", "-c", ask, said="assistant")
    (folder / "tasks").mkdir()
    (folder / "tasks/own.yaml").write_text(TASK.format(file=folder / "pairs.jsonl"), encoding="utf-8")
    harness = ("lm_eval", "--model", "hf", "--model_args", "pretrained=exported", "--tasks", "own_rows")
    door.run(*harness, "--include_path", "tasks", "--apply_chat_template", "--device", "cpu", said="own_rows")

    arms = ("mgsr", "ablate", "baselines", "--config", "my.yaml", "--arms", "full", "gkd", "sft")
    door.run(*arms, *SMALL, "train.max_steps=4", "train.batch_size=4", said="mgsr report runs/baselines-my")
    door.run("mgsr", "report", "runs/baselines-my", said="written to")
    report = (folder / "runs/baselines-my/README.md").read_text(encoding="utf-8")
    if "my.yaml" not in report or "demo" in report:
        raise SystemExit("the report is not of the user's own configuration")


def begun(run: Path) -> bool:
    """Whether training has written a resume point."""
    return any(run.glob("checkpoints/*"))


def install(folder: Path, python: str) -> Path:
    """A wheel of this tree in an environment of its own; returns where the programs are."""
    subprocess.run([python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder / "wheel", ROOT], check=True)
    (wheel,) = (folder / "wheel").glob("*.whl")
    subprocess.run([python, "-m", "venv", folder / "env"], check=True)
    programs = folder / "env/bin"
    subprocess.run([programs / "pip", "install", "-q", wheel, "lm-eval>=0.4.9,<0.5"], check=True)
    return programs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="work here, and leave it (default: a scratch one)"
    )
    parser.add_argument("--python", default=sys.executable, help="makes the environment (default: this one)")
    parser.add_argument("--programs", type=Path, metavar="BIN", help="an environment that has a wheel installed")
    arguments = parser.parse_args()
    folder = (arguments.keep or Path(tempfile.mkdtemp())).resolve()
    (folder / "work").mkdir(parents=True)
    try:
        programs = arguments.programs or install(folder, arguments.python)
        walk(Door(folder / "work", programs.resolve()))
    finally:
        if arguments.keep is None:
            shutil.rmtree(folder)
    print("every step did what it should")


if __name__ == "__main__":
    main()
