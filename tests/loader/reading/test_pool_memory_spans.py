import weakref

import numpy as np
import torch

from streamtrain.loader.reading.pool_memory import SpanMemory
from streamtrain.store.layout import Field

X = Field(name="x", dtype=np.dtype("float32"), shape=(2, 3))
Y = Field(name="y", dtype=np.dtype("int64"), shape=())


def test_spans_have_their_fields_shapes_and_dtypes():
    span = SpanMemory((X, Y), 10, 2).lend(3, 20, 27)
    assert (span.epoch, span.start, span.stop) == (3, 20, 27)
    assert [(a.shape, a.dtype) for a in span.arrays] == [((7, 2, 3), np.dtype("f4")), ((7,), np.dtype("i8"))]


def test_memory_is_lent_again_only_after_the_last_tensor_is_gone():
    memory = SpanMemory((Y,), 10, 2)
    array = memory.lend(0, 0, 10).arrays[0]
    address = array.ctypes.data
    parts = torch.from_numpy(array).split(4)
    del array
    last = parts[2][1:].numpy()
    del parts
    assert memory.lend(0, 10, 20).arrays[0].ctypes.data != address
    del last
    assert memory.lend(0, 10, 20).arrays[0].ctypes.data == address


def test_closed_memory_keeps_nothing_and_what_is_lent_stays_whole():
    memory = SpanMemory((Y,), 10, 2)
    held, given_back = memory.lend(0, 0, 10), memory.lend(0, 10, 20)
    held.arrays[0][:] = 7
    gone = [weakref.ref(span.arrays[0].base) for span in (held, given_back)]
    del given_back
    assert gone[1]() is not None
    memory.close()
    assert gone[1]() is None
    assert held.arrays[0].tolist() == [7] * 10
    del held
    assert gone[0]() is None


def test_surplus_memory_is_given_back():
    memory = SpanMemory((Y,), 10, 2)
    held = [memory.lend(0, 10 * i, 10 * i + 10) for i in range(6)]
    assert len({span.arrays[0].ctypes.data for span in held}) == 6
    held.clear()
    memory.lend(0, 0, 10)
    assert len(memory._free[0]) <= 2
