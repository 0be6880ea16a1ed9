"""The wheel works in any folder: built, installed and used without a network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEACHER = "mgsr/data/synthetic/teacher/"
TINY = (
    "data.synthetic={teacher_rows: 48, train_rows: 32, dev_rows: 6, test_rows: 6, vocab_size: 300}",
    # a teacher of its own: that of the demo is no quick one
    "teacher={source: init, architecture: {family: llama, hidden_size: 16, num_layers: 1, num_heads: 2}}",
    "teacher.sft={enabled: true, max_steps: 2}",
    "student.sft.max_steps=2",
    *("train.max_steps=2", "scrg.max_new_tokens=6", "evaluation.max_new_tokens=6", "evaluation.seeds=[10]"),
)


def run(*words: str, cwd: Path, path: Path | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{words}: {(done.stdout + done.stderr)[-3000:]}"
    return done.stdout


DRIVER = """
import contextlib, io, json, mgsr
from mgsr.cli.main import main

codes, said = [], []
for words in {commands!r}:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        codes.append(main(words))
    said.append(out.getvalue())
print(json.dumps({{"package": mgsr.__file__, "codes": codes, "said": said}}))
"""


@pytest.mark.long
def test_a_wheel_trains_runs_a_study_and_reports_in_an_empty_folder(tmp_path: Path) -> None:
    wheels, target, work = (tmp_path / name for name in ("wheels", "target", "work"))
    work.mkdir()
    alone = ("--no-deps", "--no-index", "--quiet")
    run("-m", "pip", "wheel", str(ROOT), "--no-build-isolation", *alone, "-w", str(wheels), cwd=work)
    (wheel,) = wheels.iterdir()
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {"mgsr", f"{wheel.name.split('-py3')[0]}.dist-info"}
    teacher = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / TEACHER).glob("*"))
    assert sorted(name for name in names if name.startswith(TEACHER)) == teacher
    code = [name for name in names if name.startswith("mgsr/") and not name.startswith(TEACHER)]
    assert {Path(name).suffix for name in code} == {".py", ".yaml", ".j2", ".md"}
    run("-m", "pip", "install", str(wheel), *alone, "--target", str(target), cwd=work)
    before = sorted(path for path in target.rglob("*") if path.suffix != ".pyc")

    listed = run("-m", "mgsr", "config", "--list", cwd=work, path=target)
    assert "\n  smollm2 " in listed and "\n  scrg " in listed
    commands = [
        ["train", "demo", *TINY],
        ["ablate", "span", "--arms", "full", "no_span", *TINY],
        ["report", "span"],
        ["ablate", "span", "--arms", "full", "--seeds", "0", "--record", *TINY],
    ]
    # one after another in one process, which imports once
    found = json.loads(run("-c", DRIVER.format(commands=commands), cwd=work, path=target).splitlines()[-1])
    assert Path(found["package"]).is_relative_to(target) and found["codes"] == [0, 0, 0, 0]
    trained, ablated, reported, skipped = found["said"]
    assert "written to runs/demo/full/seed=0" in trained and "mgsr report runs/span" in ablated
    assert "written to runs/span/README.md" in reported and "1 of 1 run complete already" in skipped
    text = (work / "runs/span/README.md").read_text()
    assert (
        "mgsr ablate span --arms full no_span --seeds 0" in text
        and "Base `demo data.synthetic=" in text.replace("'", "")
    )
    # of somebody's checkout around it nothing is said
    results = [json.loads(path.read_text()) for path in (work / "runs/results").iterdir()]
    assert [result["environment"]["commit"] for result in results] == ["unknown", "unknown"]
    assert sorted(path for path in target.rglob("*") if path.suffix != ".pyc") == before
    assert [path.name for path in work.iterdir()] == ["runs"]
