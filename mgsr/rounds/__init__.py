"""Rounds of model-written text: SCRG bound to a run, its models and its folder.

`round` says which rank writes which shard and when a round is read, written or refused; `writer` asks the models
for text in the way `scrg.text` names, and `own_text` checks that of a user's own writer; `store` is the files,
and alone knows their format; `render` shows revised sequences to people; `text_quality` measures the rounds of a
finished run. The method itself is in `mgsr.scrg`, decoding in `mgsr.generation`, and which prompts a round
answers is decided in `mgsr.training.mixture`. Nothing here trains or keeps a weight.

Begin with `round.Rounds.ensure`, then `writer.RoundWriter.write`.
"""
