"""Campaigns of made-up inputs: checkpoints, texts and command lines.

Each input is a mutation of a good one, drawn with a seed, and is given to the command
line in this process. `check` holds what must be true of every one of them.
"""
