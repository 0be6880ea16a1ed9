"""From rows to batches: what is read, how it becomes token ids, spans and micro-batches.

`rows` reads instruction rows and refuses bad ones by file and line; `synthetic` makes rows from a seed; `splits`
says which rows a run reads. `prompts` lays a row out and encodes it, `tokenizer` trains a tokenizer for models
that start from nothing. `chunkers` finds phrases in a text, `spans` gives every token the phrase it belongs to,
`annotate` does both for whole sets. `sampler` plans the micro-batches of a step, `collate` fills them.

No model runs here, nothing is written by one, and no text that a model wrote is read (that is `mgsr.rounds`).

Begin with `rows.Row`, `prompts.Example` and `collate`. A new loader of rows goes into `rows`.
"""
