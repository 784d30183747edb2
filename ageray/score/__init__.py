"""The command `score`: ages of all faces in a collection of photos, as a table. Start at
`ageray.score.pipeline`.
"""
