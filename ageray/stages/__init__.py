"""The two stages that `score` and `serve` run: photos to face canvases (`detect`), canvases to ages
(`predict`). Where a GPU finds the faces, `score` runs two others: photos to pixels (`decode`),
pixels to ages (`photos`).
"""
