"""How good a model is: its answers to a test set, and their measures.

`test_set` has a model answer a set and scores the answers; `metrics` are ROUGE-L, exact match and diversity of
texts; `floors` are what needs no model; `exposure_bias` compares a student with its teacher on text of either;
`flops` is the arithmetic of a transformer, of what a run has cost and of what one will cost. What is measured of
the rounds of a run is in `mgsr.rounds.text_quality`; comparisons of arms and their verdicts are in `mgsr.study`.
Nothing here trains, or reads a run folder.

Begin with `test_set.evaluate`.
"""
