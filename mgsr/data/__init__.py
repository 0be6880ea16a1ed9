"""From rows to batches: what is read, how it becomes token ids, spans and micro-batches.

`rows` has the row and the rule by which rows are split, `row_shapes` what an object says as one, `row_files` and
`row_hub` the readers, which refuse bad rows by file and line; `synthetic` makes rows from a seed; `splits` says
which rows a run reads. `prompts` lays a row out and encodes it, `tokenizer` trains a tokenizer for models that
start from nothing. `chunkers` finds phrases in a text, `spans` gives every token the phrase it belongs to,
`annotate` does both for whole sets. `sampler` plans the micro-batches of a step, `collate` fills them.

No model runs here, nothing is written by one, and no text that a model wrote is read (that is `mgsr.rounds`).

Begin with `rows.Row`, `prompts.Example` and `collate`. A new kind of file goes into `row_files`, a new
shape of rows into `row_shapes`.
"""
