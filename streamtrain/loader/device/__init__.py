"""The device that a model trains on, and the way of batches to it.

Batches are gathered on the host and copied, or gathered on the device from a pool that lies there (`Placement`). In
both ways whole spans cross the bus, or whole blocks, from page-locked memory and beside the training, and the order is
the one of the CPU bit for bit. A batch belongs to the caller: its memory is used again only when nothing refers to it
and the queue it was handed over to is done with it.
"""
