"""Studies: arms of one configuration, run with several seeds, recorded, judged and reported.

A study is a YAML file (`study.py`). `run.py` runs its arms (`mgsr ablate`) and skips what is recorded. `pool.py`
keeps one file for every run, whatever study asked for it; `view.py` finds those of a study. `analysis.py` compares
its arms. `summary.py` is for the terminal, `tensorboard_events.py` for TensorBoard; `report/` writes the pages.

An arm is data, a YAML override, so no module here knows one by name. Nothing here trains: that is `training`.
Reports read result files alone, never a run folder.

Begin with `study.py`, then `run_study` in `run.py`.
"""
