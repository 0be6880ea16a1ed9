"""What `mgsr COMMAND --help` says, with examples."""

from __future__ import annotations

TRAIN_HELP = """\
Distil a student as CONFIG and the key=value words say, evaluate its best checkpoint on the test sets, and write
metrics.json. It begins with what it will do, in words; without CONFIG the words are all it has.

Everything goes to <run_root>/<experiment>/<arm>/seed=<seed>/. Teacher and student are fine-tuned first where the
config asks for it; both are cached in <run_root>/cache and taken from there the next time.
`mgsr config` lists every key. Values are YAML: scrg.passes=3 data.test_sets='{vicuna: vicuna.jsonl}'.

  mgsr train configs/demo.yaml
  mgsr train teacher.source=my_teacher student.source=my_student data.train=rows.jsonl
  mgsr train configs/demo.yaml arm=no_scrg scrg.enabled=false seed=1
  mgsr train --resume runs/demo/mgsr/seed=0

On several GPUs of one machine it starts one process each; torchrun and srun start them on several machines.

  mgsr train configs/llama2.yaml trainer.devices=8 trainer.strategy=fsdp2
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

SOURCE is a run folder (its best student is taken, its template and limits hold), what mgsr export made of one, or
any transformers folder.

  mgsr evaluate runs/demo/mgsr/seed=0 --data my_questions.jsonl --seeds 10 20
  mgsr evaluate runs/demo/mgsr/seed=0 --data my_questions.jsonl --teacher
  mgsr evaluate exported/ --data dolly_test.jsonl self_instruct.jsonl --out figures.json
"""
EXPORT_HELP = """\
Write the best student of a run, with tokenizer and model card, as a plain transformers folder:
AutoModelForCausalLM.from_pretrained(OUT) then works where mgsr is not installed.

Of a run with adapters (student.lora.r > 0) they alone are written, as a folder that
peft.PeftModel.from_pretrained(base, OUT) reads; the model card names the base. --merge adds them into the base's
weights and writes the plain folder, which needs neither mgsr nor peft. Without adapters --merge changes nothing.

  mgsr export runs/demo/mgsr/seed=0 exported/
  mgsr export runs/demo/lora/seed=0 exported/ --merge
"""
ABLATE_HELP = """\
Run every arm of a study with every seed, one after another. What is complete is skipped, what was begun goes on.
All runs have the number of threads that the study's runs had until now; where there are none, trainer.threads, or
the share of the processor that --jobs leaves.

  mgsr ablate demo
  mgsr ablate demo --seeds 0 1 2 3 4 scrg.passes=3
  mgsr ablate grid --seeds 0 1 2 3 4 --jobs 2 --record trainer.threads=1

Peers on your own models and data: the arms of a study on your configuration, as the study baselines-my. Where
--arms leaves the study's baseline out, the first arm in the study's order is the one the others are compared with.

  mgsr ablate baselines --config my.yaml --arms mgsr gkd sft --seeds 0 1 2
  mgsr report runs/baselines-my
"""
TEXTS_HELP = """\
Print revised sequences of a run as Markdown: prompt, what the student wrote, and per pass the position of the
error, KL(p || q) there, the student's token, the teacher's token, and how the student went on.

  mgsr texts runs/demo/mgsr/seed=0 --round 0 --number 10
"""


REPORT_HELP = """\
Write README.md, plots and report.html of a study from its result files: those of its runs below a run root, or
those that --record kept. No run folder is read; the same results give the same bytes, from any working folder.

  mgsr report runs/baselines-my
  mgsr report grid
"""
DOCTOR_HELP = """\
Check a configuration before it runs, without loading a weight: keys, rows one by one, tokenizers, lengths and what
is cut, memory per device in each phase with the largest batch that fits, disk. Exit code 0 if it is ready, else 1.

  mgsr doctor configs/demo.yaml
  mgsr doctor configs/demo.yaml train.batch_size=512 train.micro_batch_size=512 --memory 24GB --json
"""
PLAN_HELP = """\
Say what a run costs before a device is rented: steps, tokens, FLOPs, time, memory of a device under every strategy
and placement of the teacher, and what devices send one another. No weight is loaded. Shapes of models that are not
on this machine come from a table of known ones. Exit code 0 if some strategy fits, else 1.

The defaults of the hardware are an A100 SXM's with 80 GB; the configuration's trainer.devices is not looked at.

  mgsr plan configs/llama2.yaml --devices 8 --gpu 80GB
  mgsr plan configs/gpt2.yaml train.micro_batch_size=16 --devices 2 --gpu 24GB --flops 165 --bandwidth 1008 --json
"""
