"""Ages from faces, at scale, on Ray.

    import ageray

    model = ageray.load()
    for face in model.ages("photo.jpg"):
        print(face.age, face.interval, face.box)

`import ageray` takes milliseconds: torch and Ray are imported by what needs them.
"""

__version__ = "0.2.0"
