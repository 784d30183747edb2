"""The command `score`: ages of all faces in a collection of photos, as a table. Start at
`ageray.score.pipeline`. The package can be called: `ageray.score("photos", "scores")` does what the
command does (`ageray.api.calls`).
"""

from ageray.callable_package import make_callable

make_callable(__name__)
