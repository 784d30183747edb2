"""One of the workers of a run: all stages, epoch after epoch, then the bundle. The first of them writes what is kept."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.distributed
from ray.util.queue import Queue
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from ageray import bundle, calibration, distributed, metrics, storage
from ageray.data.stream import UsableBatches
from ageray.errors import UserError
from ageray.experiment import Experiment
from ageray.models.gallery import Gallery
from ageray.predictor import Predictor
from ageray.train import checkpoint, curves, epochs, profiling, wise_ft
from ageray.train import plan as planning
from ageray.train.checkpoint import AsyncCheckpointer
from ageray.train.loader import Streams, no_face, threads
from ageray.train.loop import start, train_one_epoch
from ageray.train.plan import Plan
from ageray.train.state import State, new_state
from ageray.train.validation import build_gallery, validate

_REPORT_SECONDS = 2.0  # between two progress messages
_AGAIN = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
)  # and what is derived from them


def work(settings: dict[str, Any]) -> None:
    """What Ray Train runs on every worker. An error that would come again, such as a user's mistake or a loss that is not finite, is told to the
    queue before it is raised: going on from the last checkpoint would not help."""
    queue: Queue = settings["queue"]
    try:
        Worker(
            Experiment.model_validate(settings["experiment"]), settings["plan"], settings["rows"], queue
        ).run()
    except _AGAIN as error:
        queue.put({"kind": "final", "mistake": str(error) if type(error) is UserError else None})
        raise


class Worker:
    def __init__(self, experiment: Experiment, plan: Plan, rows: dict[str, Any], queue: Queue) -> None:
        device = ray.train.torch.get_device()
        if device.type == "cpu":
            torch.set_num_threads(threads(experiment))
        self.number, self.world = distributed.rank_and_world()
        self.plan, self.queue = plan, queue
        self.streams = Streams(experiment, plan, rows)
        self.state: State = new_state(experiment, device)
        self.keeper = AsyncCheckpointer(self._place(planning.STATE))

    def run(self) -> None:
        saved = checkpoint.load(self._place(planning.STATE))
        if saved is not None:
            stage = saved["progress"]["stage"]
            self.state.load_state_dict(
                saved, self.plan.steps[stage] * self.state.config.train.stages[stage].epochs
            )
        for _ in epochs.remaining(self.state, self.plan.steps):
            self._epoch()
        self.keeper.wait()
        self._finish()

    def _place(self, name: str) -> str:
        return storage.join(self.plan.folder, name)

    def _epoch(self) -> None:
        """What is left of an epoch, its validation, its record and its checkpoint."""
        state, scale = self.state, self.state.config.scale
        if state.step == 0 and state.network.num_init_faces:
            start(state, self.streams.training(state).batches)
        faces, started = self.streams.training(state), time.perf_counter() - state.partial.seconds
        with profiling.trace(self._place(planning.TRACE), scale.profile and self.number == 0) as profiled:
            tell = self._progress(profiled)
            result = train_one_epoch(state, faces.batches, tell, self._keep, scale.checkpoint_steps)
        skipped = [row for rows in distributed.all_gather_object(faces.ordered.skipped) for row in rows]
        if result.images == 0:
            folders = self.plan.folders(state.config.train.stages[state.stage])
            raise no_face(", ".join(folders), "", skipped)
        self._sync_batch_stats()
        near = (
            self._gallery(state.config.model.decode.gallery.validation_faces)
            if self.plan.parts["val"]
            else None
        )
        validated = validate(state, self.streams.whole("val"), near)
        seconds = time.perf_counter() - started
        record = epochs.close(state, result, validated, seconds, len(skipped), faces.batches.waited)
        if self.number == 0:
            self._write(record)
        self._keep()
        ray.train.report({"val_mae": record["val_mae"], "epoch": state.epoch})

    def _progress(self, profiled: profiling.Step) -> Any:
        """Shows where the epoch is, every two seconds, and ends what could not be kept."""
        state, told = self.state, 0.0
        began, first = time.perf_counter(), state.partial.images

        def tell(step: int, images: int) -> None:
            nonlocal told
            profiled()
            self.keeper.check()
            seconds = time.perf_counter() - began
            if self.number == 0 and seconds - told > (_REPORT_SECONDS if told else 0):
                told = seconds
                place = {
                    "kind": "step",
                    "epoch": state.epoch,
                    "epochs": sum(stage.epochs for stage in state.config.train.stages),
                }
                steps = {"step": step, "steps": self.plan.steps[state.stage]}
                self.queue.put({**place, **steps, "images_s": (images - first) / seconds, "seconds": seconds})

        return tell

    def _sync_batch_stats(self) -> None:
        """Batch statistics become the mean over the workers. They are means themselves, so doing it now or later is the same."""
        buffers = [buffer for buffer in self.state.network.buffers() if buffer.is_floating_point()]
        distributed.average(buffers)
        if self.state.average is not None:
            for kept, current in zip(self.state.average.buffers(), self.state.network.buffers(), strict=True):
                kept.copy_(current)

    def _keep(self) -> None:
        self._sync_batch_stats()
        if self.number == 0:
            self.keeper.keep(self.state.state_dict())

    def _write(self, record: dict[str, Any]) -> None:
        """The best weights, the log in its forms, and the record for whoever watches."""
        state = self.state
        if record["best"]:
            weights = {name: tensor.contiguous() for name, tensor in state.judged.state_dict().items()}
            storage.write_bytes(self._place(planning.BEST), save_safetensors(weights))
        storage.write_text(self._place(planning.LOG), planning.to_lines(state.log))
        storage.write_bytes(self._place(planning.CURVES), curves.learning_curves(state.log))
        storage.write_bytes(self._place(planning.EVENTS), curves.events(state.log))
        self.queue.put(record)

    def _gallery(self, most: int | None = None) -> Gallery | None:
        """The judged network's gallery of the first `most` training faces of the data set, or of all; None for a model that needs none."""
        if self.state.config.model.decode.method != "gallery":
            return None
        batches = self.streams.whole("train", most)
        made = build_gallery(self.state, batches)
        if made is None:
            raise no_face(", ".join(self.plan.folders()), " for the gallery", batches.skipped)
        return made

    def _finish(self) -> None:
        """The best weights as a bundle, calibrated on the validation part through the predictor that will serve it."""
        state = self.state
        network = state.judged
        network.load_state_dict(load_safetensors(storage.read_bytes(self._place(planning.BEST))))
        way_back: dict[str, Any] = {}
        if state.config.train.wise_ft and self.plan.parts["val"]:
            first = wise_ft.start_weights(state.config)
            choice = wise_ft.choose(state, first, lambda: validate(state, self.streams.whole("val")))
            way_back = {"wise_ft": choice}
        folder, card = (
            self._place(bundle.IN_RUN),
            {
                "model": state.config.model.name,
                "training": self.plan.facts,
                "epochs": state.epoch,
                **way_back,
            },
        )
        draft, gallery = folder + ".unfinished", self._gallery()
        if self.number == 0:
            bundle.save(draft, network, state.config, card, gallery)
        self._barrier()
        predictor = Predictor(bundle.load(draft), device=str(state.device), threads=threads(state.config))
        found = _predict_all(predictor, self.streams.whole("val"))
        self._barrier()
        if self.number == 0:
            bundle.save(
                folder,
                network,
                state.config,
                _judged(dict(predictor.bundle.card), found, state.config, self.plan),
                gallery,
            )
            storage.remove_tree(draft)

    def _barrier(self) -> None:
        if self.world > 1:
            torch.distributed.barrier()


def _judged(card: dict[str, Any], found: dict[str, Any], config: Experiment, plan: Plan) -> dict[str, Any]:
    """The card with calibration and validation."""
    if not len(found["age"]):
        return card
    fitted = calibration.Calibration()
    if config.train.calibrate:
        fitted = calibration.fit(found["age"], found["decoded"], found["low"], found["high"])
        card["calibration"] = fitted.to_card()
    age, low, high = fitted.apply(found["decoded"], found["low"], found["high"])
    card["validation"] = metrics.summary(found["age"], age, low, high, plan.facts["train_ages"]["median"])
    return card


def _predict_all(predictor: Predictor, batches: UsableBatches) -> dict[str, Any]:
    """True age, decoded age and quantiles before calibration, of every face of all workers, in the order of the shards."""
    rows = [np.zeros((0, 5))]
    for batch in batches:
        decoded = predictor.predict(batch["canvas"], batch["points"], batch["box"], batch["subject"]).decoded
        rows.append(np.column_stack([batch["row"], batch["age"], decoded[:, :3]]))
    table = np.concatenate(distributed.all_gather_object(np.concatenate(rows)))
    table = table[np.argsort(table[:, 0], kind="stable")].astype(np.float32)
    return dict(zip(("age", "decoded", "low", "high"), table[:, 1:].T, strict=True))
