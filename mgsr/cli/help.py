"""What `mgsr COMMAND --help` says, with examples, and how it is set."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from typing import Any

WIDEST = 100


class HelpFormatter(argparse.HelpFormatter):
    """Paragraphs as wide as the terminal, within reason; indented lines are examples and stay as they are."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, **{"width": min(shutil.get_terminal_size().columns - 2, WIDEST), **options})

    def add_argument(self, action: argparse.Action) -> None:
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):
            # commands are indented once more, which argparse forgets
            self._action_max_length += self._indent_increment

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = text.strip("\n").split("\n\n")
        return "\n\n".join(part if part.startswith("  ") else textwrap.fill(part, width) for part in parts) + "\n"


TRAIN_HELP = """\
Distil a student as CONFIG and the key=value words say, evaluate its best checkpoint on the test sets, and write
metrics.json. It begins with what it will do, in words. CONFIG is a YAML file, or the name of a configuration that
comes with mgsr; without it the words are all there is.

Everything goes to <run_root>/<experiment>/<arm>/seed=<seed>/. Teacher and student are fine-tuned first where the
config asks for it; both are cached in <run_root>/cache and taken from there the next time. At the end stand the
figures, the checkpoint that was taken, and what can be done next.

  mgsr train demo
  mgsr train teacher.source=my_teacher student.source=my_student data.train=rows.jsonl
  mgsr train demo arm=no_scrg scrg.enabled=false seed=1
  mgsr train --resume runs/demo/full/seed=0

`mgsr config` lists every key. Values are YAML:

  mgsr train demo scrg.passes=3 data.test_sets='{vicuna: vicuna.jsonl}'

On several GPUs of one machine it starts one process each; torchrun and srun start them on several machines.

  mgsr train llama2 trainer.devices=8 trainer.strategy=fsdp2
"""
INIT_HELP = """\
Print a commented configuration to start from: one's own models and rows, the keys that one decides on first, each
with its default. Nothing is written but to the terminal.

  mgsr init > my.yaml
  mgsr init teacher.source=my_teacher student.source=my_student data.train=rows.jsonl > my.yaml
  mgsr doctor my.yaml
"""
EVALUATE_HELP = """\
Write the answers to every row of the data files and measure them (ROUGE-L F x 100, maximum over references).

RUN_OR_MODEL_FOLDER is a run folder (its best student is taken, its template and limits hold), what mgsr export
made of one, or any transformers folder.

  mgsr evaluate runs/demo/full/seed=0 --data my_rows.jsonl --seeds 10 20
  mgsr evaluate runs/demo/full/seed=0 --data my_rows.jsonl --teacher
  mgsr evaluate exported/ --data dolly.jsonl vicuna.jsonl --out figures.json
"""
EXPORT_HELP = """\
Write the best student of a run, with tokenizer and model card, as a plain transformers folder:
AutoModelForCausalLM.from_pretrained("OUT") then works where mgsr is not installed.

Of a run with adapters (student.lora.r > 0) they alone are written, as a folder that
peft.PeftModel.from_pretrained(base, "OUT") reads; the model card names the base. --merge adds them into the base's
weights and writes the plain folder, which needs neither mgsr nor peft. Without adapters --merge changes nothing.
--dtype bfloat16 halves the file; what the rounding costs, mgsr evaluate tells.

  mgsr export runs/demo/full/seed=0 exported/
  mgsr export runs/demo/lora/seed=0 exported/ --merge
"""
ABLATE_HELP = """\
Run every arm of a study with every seed, one after another. What is complete is skipped, what was begun goes on.
STUDY is a YAML file, or the name of a study that comes with mgsr.

Every run has trainer.threads threads, or the share of the processor that --jobs leaves.

  mgsr ablate demo
  mgsr ablate demo --seeds 0 1 2 3 4 scrg.passes=3
  mgsr ablate grid --seeds 0 1 2 3 4 --jobs 2 --record trainer.threads=1

Peers on your own models and data: the arms of a study on your configuration, as the study baselines-my. Where
--arms leaves the study's baseline out, the first arm in the study's order is the one the others are compared with.

  mgsr ablate baselines --config my.yaml --arms full gkd sft --seeds 0 1 2
  mgsr report runs/baselines-my
"""
TEXTS_HELP = """\
Show revised sequences of a run: prompt, what the student wrote, and per pass the position of the error, KL(p || q)
there, the student's token, the teacher's token, and how the student went on. A terminal shows them in colours
(NO_COLOR=1 does without), a pipe or a file gets Markdown.

  mgsr texts runs/demo/full/seed=0
  mgsr texts runs/demo/full/seed=0 --round 0 --number 3
  mgsr texts runs/demo/full/seed=0 > texts.md
"""
REPORT_HELP = """\
Write README.md, plots and report.html of a study from its recorded runs: those below a run root, or those that
--record kept. No run folder is read; the same results give the same bytes, from any working folder. Of a folder of
studies all reports are written, and a README.md over them.

  mgsr report runs/baselines-my
  mgsr report grid
  mgsr report experiments
"""
DOCTOR_HELP = """\
Check a configuration before it runs, without loading a weight: keys, rows one by one, tokenizers, lengths and what
is cut, memory per device in each phase with the largest batch that fits, disk. Exit code 0 if it is ready, else 1.

  mgsr doctor demo
  mgsr doctor demo train.batch_size=512 --memory 24GB --json
"""
PLAN_HELP = """\
Say what a run costs before a device is rented: steps, tokens, FLOPs, time, memory of a device under every strategy
and placement of the teacher, and what devices send one another. No weight is loaded. Shapes of models that are not
on this machine come from a table of known ones. Exit code 0 if some strategy fits, else 1.

The defaults of the hardware are an A100 SXM's with 80 GB; the configuration's trainer.devices is not looked at.

  mgsr plan llama2 --devices 8 --gpu 80GB
  mgsr plan gpt2 train.micro_batch_size=16 --devices 2 --gpu 24GB --flops 165
"""
CONFIG_HELP = """\
List the configuration keys with type, default and one line of help: all of them, those of a SECTION, or one KEY.
With a CONFIG, check it and print it in full.

  mgsr config
  mgsr config scrg
  mgsr config teacher.sft
  mgsr config train.lr
  mgsr config demo scrg.passes=3

A file, or the name of a configuration that comes with mgsr, goes before a section of the same name.
"""
COMPLETION_HELP = """\
Print a script with which a shell completes commands, options, files and the names of configuration keys.

bash, for good or for this shell alone:

  mgsr completion bash > ~/.local/share/bash-completion/completions/mgsr
  source <(mgsr completion bash)

zsh, into a folder of $fpath:

  mgsr completion zsh > "${fpath[1]}/_mgsr"

The script is made anew by the same command when mgsr is upgraded.
"""
