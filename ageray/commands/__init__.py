"""The commands: `ageray prepare`, `train`, `tune`, `calibrate`, `evaluate`, `score`, `serve`,
`export`.

Each module reads the command line and the settings, and only then imports the package of its name.
So `--help` and a user's mistake are answered without importing Ray and torch, which takes seconds.
"""

COMMANDS = {
    "prepare": "photos to face shards, the form that training and evaluation read",
    "train": "face shards to a model",
    "tune": "search any settings of a recipe",
    "calibrate": "a model fitted to labelled faces of your own camera and people",
    "evaluate": "models against labelled sets; every fold of a protocol",
    "score": "ages of all faces in a collection of photos",
    "serve": "ages over HTTP, and a page",
    "export": "a model as an ONNX file or a program of torch.export",
}
"""Every command, in the order of a model's life, with one line for `ageray --help`."""
