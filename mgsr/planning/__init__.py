"""`mgsr doctor` and `mgsr plan`: what a run needs, and what would go wrong with it, before a weight is loaded.

`doctor` checks one configuration on this machine: `doctor_data` looks at rows, tokenizers and lengths,
`doctor_memory` at memory and disk, `findings` keeps what was found. `outline` says in words what `mgsr train` will
do. `plan` says what a run costs on other devices:
`workload` has steps, sequences and tokens, `plan_cost` FLOPs and seconds, `plan_memory` bytes under every
strategy, `host_memory` those of a node and of checkpoints, `communication` what devices send one another,
`plan_table` the tables. Both stand on `mgsr.evaluation.flops`, `shapes`, `model_size` (bytes of a model) and
`peak_memory` (bytes that a step adds to them); `units` writes numbers for people.

Nothing here loads weights, trains or writes a file.

Begin with `doctor.examine` or `plan.plan`.
"""
