"""This machine: how many CPUs it lends to this process, a pool of processes on them, and whether
they or Ray do a command's work. Nothing here imports Ray or torch.
"""
