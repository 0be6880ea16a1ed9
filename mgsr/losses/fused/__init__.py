"""The terms of `mgsr.losses` from hidden states, in tiles of tokens: no `[N, V]` tensor ever stands in memory.

With a = dL/dlog q, every term's gradient to the logits is (a - q * sum(a)) / temperature.

Each term's file says how its a is found without autograd: `cross_entropy`, `dac_kl`, `divergences`,
`span_correlation`, `policy_gradient`. `selection` says which classes DAC-KL reads at all. `model_rows` takes the
gradient on to hidden states and weights. `workspace` has the softmax of a tile, its memory, and the record in
which a term hands over its a. `tile` puts the terms of a tile together. Begin with `tiled_objective`, the public
one.

Nothing here is a definition: what a term is, with equation and source, stands one folder up, and
`tests/losses/test_twins.py` holds the two together.
"""
