"""The fast path of the sample rule: the plain loop's steps without autograd, several times as fast.

Most of the time of a step on one sample of a small model is overhead: a graph is built and walked for a few vectors,
and an optimizer visits all its weights again and again. Here a step is a handful of calls into torch on memory made
once. It works for chains of ``Linear`` and activations behind ``Flatten`` and input normalization, the built-in losses
with sample weights, and SGD, Adam and AdamW with all their options and their own state.

The weights are the plain loop's to rounding, since sums are taken in another order. Anything else, such as a hook, is
left to the plain loop; `streamtrain.optim.sample_fast_path.supported` names the reason.
"""
