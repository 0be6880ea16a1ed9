"""Runs: what binds models, data, rounds and objective to Lightning.

`train.train` is one run from rows to `metrics.json`; begin there. `sft` makes the models it starts from. `build`
binds the configuration to a module (`module`), its data (`datamodule`) and who writes text; `trainer.fit` trains
them. A batch goes from `datamodule` to `module`, which asks `placement` for hidden states and the objective for
the loss, and adds up what it saw in `step_metrics`. Which text a prompt trains on is decided in `mixture`.
`optim` has the optimiser and the length of a stage, `callbacks` what is logged and when the dev set is looked at.
`teacher_cache` keeps what the teacher says. What survives a kill is in `checkpoint` and `run_folder`; `launch` and
`fsdp` are for several devices, `export` for a finished run.

No equation lives here: those are in `mgsr.losses` and `mgsr.scrg`. The teacher is a plain object beside the module
tree (`placement`), so that it is never in a checkpoint or an optimiser. An ablation is a configuration, never a
branch of these files.
"""
