"""The models that ship, a folder a version (`ageray.bundle` finds them), and how a bundle is
made of several.

Shipped weights lie beside this file, as `NAME/VERSION`.
"""
