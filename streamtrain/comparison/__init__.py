"""Update rules and optimizers side by side, from the same initial weights over the same data.

`streamtrain.comparison.compare.compare` runs them; `streamtrain.comparison.results` holds their results.
"""
