"""Studies: arms of one configuration, run with several seeds, recorded, judged and reported.

A study is a YAML file (`study.py`). `run.py` runs its arms (`mgsr ablate`) and skips what is recorded.
`collect.py` turns a finished run folder into a small result file; `results.py` writes and reads those,
`result_checks.py` refuses torn ones. `machines.py` and `starting_models.py` say which runs may be compared,
`verdicts.py` what they show. `summary.py` is for the terminal, `tensorboard_events.py` for TensorBoard; `report/`
writes the README.

An arm is data, a YAML override, so no module here knows one by name. Nothing here trains: that is `training`.
Reports read result files alone, never a run folder.

Begin with `study.py`, then `run_study` in `run.py`.
"""
