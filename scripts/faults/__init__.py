"""Fault injection: what is found on the disk after a kill, a loss of power, a full disk or damage."""
