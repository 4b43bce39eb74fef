"""The ground that all other packages stand on: durable files, memory, events, signals, arguments.

Nothing here knows of datasets or training.
"""
