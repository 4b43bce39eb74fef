"""Update rules and optimizers side by side, from the same initial weights over the same data."""
