"""The fast path of the sample rule: the plain loop's steps without autograd, several times as fast.

What takes the time in a step on one sample of a small model is not arithmetic but what surrounds it: a graph built and
walked for a few vectors, and an optimizer that goes over all its weights again and again. For the models, losses and
optimizers that are known here, a step is a handful of calls into torch on memory made once:

========== ====================================================================================================
models     a chain of ``Linear`` and activations, behind ``Flatten`` and what rescales the input
losses     all of `streamtrain.models.losses.LOSSES`, with sample weights
optimizers SGD (momentum, Nesterov, weight decay), Adam and AdamW, with all their options; their own state
========== ====================================================================================================

The weights are the plain loop's to rounding, since sums are taken in another order. Anything that is not known, such as
a hook, is for the plain loop, and `why_plain` says what it is.
"""
