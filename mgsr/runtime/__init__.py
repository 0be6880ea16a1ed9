"""What every other folder stands on: errors, files, locks, ranks, random numbers, devices, progress and costs.

`errors` has the errors that are the user's to mend. `files` writes files that are whole or not there, `locks`
keeps a folder to one process, `faults` lets a test kill a run at a named point. `ranks` is what the processes of a
run tell one another, `launchers` who started them. `rng` has random numbers without state: every draw has a key.
`devices` and `processor` say what this machine has, `meter` counts seconds and tokens, `progress` shows how far
long work has come, `wording` writes times and counts for people. `environment` is what a run's numbers come from:
commit, versions and machine.

Nothing here knows a configuration, a model, a loss or a row of data, and nothing here imports another folder of
the package.

Begin with `errors` and `files`; for the reproducibility of text, `rng`.
"""
