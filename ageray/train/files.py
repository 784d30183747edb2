"""The files of a run folder, each named once."""

from __future__ import annotations

from dataclasses import dataclass

from ageray import bundle, storage
from ageray.storage.lease import is_lease

RAY = "ray"
"""The folder within a run folder that Ray Train writes to; it is removed when training ends."""


_FOLDERS = ("tensorboard", RAY, bundle.IN_RUN, f"{bundle.IN_RUN}.unfinished")
_NAMES = (
    *("config.yaml", "split.parquet", "log.jsonl", "best.safetensors", "best.safetensors.sha256"),
    *("state.pt", "state.before.pt", "curves.png", "trace.json", "audit.json"),
    *("teacher.safetensors", "teacher.safetensors.sha256"),
)


@dataclass(frozen=True)
class RunFiles:
    """Paths in one run folder.

    `config` and `split` are written before training, `state` is the checkpoint, `log` has a JSON
    line per epoch, `best` the weights of the best epoch, `bundle` the finished model.
    """

    folder: str

    def is_ours(self, name: str) -> bool:
        """Whether a training run writes a file of this name, relative to the folder."""
        top, slash, _ = name.partition("/")
        if slash:
            return top in _FOLDERS
        return name in _NAMES or is_lease(name) or storage.is_draft(name)

    @property
    def config(self) -> str:
        """The experiment."""
        return storage.join(self.folder, "config.yaml")

    @property
    def split(self) -> str:
        """The part of each key, see `ageray.data.splits`."""
        return storage.join(self.folder, "split.parquet")

    @property
    def log(self) -> str:
        """A JSON line per epoch."""
        return storage.join(self.folder, "log.jsonl")

    @property
    def best(self) -> str:
        """The weights of the best epoch so far."""
        return storage.join(self.folder, "best.safetensors")

    @property
    def state(self) -> str:
        """The checkpoint, see `ageray.train.checkpoint`."""
        return storage.join(self.folder, "state.pt")

    @property
    def curves(self) -> str:
        """Learning curves as a picture."""
        return storage.join(self.folder, "curves.png")

    @property
    def events(self) -> str:
        """TensorBoard's events."""
        return storage.join(self.folder, "tensorboard/events.out.tfevents.0")

    @property
    def teacher(self) -> str:
        """The teacher's posteriors (`train.teacher_faces: aligned`)."""
        return storage.join(self.folder, "teacher.safetensors")

    @property
    def trace(self) -> str:
        """The profiler's trace (`scale.profile`)."""
        return storage.join(self.folder, "trace.json")

    @property
    def audit(self) -> str:
        """What the audit of the split reported."""
        return storage.join(self.folder, "audit.json")

    @property
    def ray(self) -> str:
        """See RAY."""
        return storage.join(self.folder, RAY)

    @property
    def bundle(self) -> str:
        """The folder of the finished model."""
        return storage.join(self.folder, bundle.IN_RUN)

    @property
    def draft_bundle(self) -> str:
        """The bundle before its calibration."""
        return f"{self.bundle}.unfinished"

    @property
    def card(self) -> str:
        """The bundle's card: if it is there, the run is finished."""
        return storage.join(self.bundle, bundle.CARD)
