"""The command line: one module per group of commands, and the frame they run in."""
