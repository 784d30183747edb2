"""Loss terms, one file each, and their weighted sum.

A term names the tensors that it needs. No loss imports a model.
"""
