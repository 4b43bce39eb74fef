"""Batches on a device: gathered on the host and copied, or gathered from a pool in device memory.

`streamtrain.loader.device.transfer.Placement` chooses. Either way whole spans, or whole blocks, cross the bus from
page-locked memory and beside the training, and the order is that of the CPU bit for bit. A batch belongs to the caller:
its memory is used again only when nothing refers to it and the queue that it was handed over to has finished with it.
"""
