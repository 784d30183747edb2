"""The models that ship with the package, and tools that combine and export bundles.

The folder of a shipped model is `NAME/VERSION` beside this file; `ageray.bundle` loads it.
"""
