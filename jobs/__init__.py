"""`python -m jobs.X` runs the command `ageray X` from a checkout or from the working directory of a
submitted job, so that the code that came with the job is the code that runs.

The commands themselves lie in `ageray.commands`. The wheel does not have this folder.
"""
