"""What `import ageray` offers to programs: `load` and `Model` (ages of photos in this process),
`score` and `evaluate` (what the commands run), `Client` (a service over HTTP).
"""
