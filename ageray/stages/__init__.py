"""The two stages that `score` and `serve` run: photos to face canvases (`detect`), canvases to ages
(`predict`).
"""
