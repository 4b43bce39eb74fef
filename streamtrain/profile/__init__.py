"""The memory timeline of a command: its process tree sampled, tied to what its loaders tell, and drawn.

`streamtrain.profile.command.watch` runs the command, `streamtrain.profile.timeline.timeline` makes figures of what was
seen, `streamtrain.profile.report.write` leaves them as ``timeline.png``, ``timeline.html`` and ``profile.json``.
"""
