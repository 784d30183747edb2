"""One training worker, run by Ray Train: all stages, epoch after epoch, then the bundle.

Worker 0 writes the files of the run folder (`ageray.train.files`) and sends the records.
"""

from __future__ import annotations

import time
from collections.abc import Callable
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
from ageray.errors import DamagedError, StoreError, UserError
from ageray.experiment import Experiment
from ageray.models.gallery import Gallery
from ageray.predictor import Predictor
from ageray.train import checkpoint, curves, epochs, feature_store, profiling, teacher, wise_ft
from ageray.train.checkpoint import AsyncCheckpointer
from ageray.train.loader import Streams, no_face, threads
from ageray.train.loop import init_network, train_one_epoch
from ageray.train.plan import Plan, to_lines
from ageray.train.state import State, new_state
from ageray.train.validation import build_gallery, validate

_REPORT_SECONDS = 2.0  # between two progress records
# errors that the next attempt would meet too, with all that are derived from them
_PERMANENT = (ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError)


def work(settings: dict[str, Any]) -> None:
    """What Ray Train runs on every worker. settings: `experiment`, `located` (the experiment with
    absolute paths, see `config.with_absolute_paths`), `plan`, `rows`, `queue`.

    An error that the next attempt would meet too (a user's mistake, a loss that is not finite) is
    put into the queue before it is raised, so that the driver does not start again.
    """
    queue: Queue = settings["queue"]
    try:
        experiment = Experiment.model_validate(settings["experiment"])
        located = Experiment.model_validate(settings["located"])
        Worker(experiment, located, settings["plan"], settings["rows"], queue).run()
    except _PERMANENT as error:
        mistake = error if type(error) in (UserError, StoreError, DamagedError) else None
        queue.put({"kind": "final", "mistake": mistake})
        raise


class Worker:
    """The state of a run on one worker, and what it reads and writes.

    experiment: as written, for the bundle. located: the same with absolute paths, since Ray Train
    runs workers in folders of their own.
    """

    def __init__(
        self, experiment: Experiment, located: Experiment, plan: Plan, rows: dict[str, Any], queue: Queue
    ) -> None:
        device = ray.train.torch.get_device()
        if device.type == "cpu":
            torch.set_num_threads(threads(experiment))
        self.rank, self.world = distributed.rank_and_world()
        self.plan, self.files, self.queue = plan, plan.files, queue
        self.streams = Streams(experiment, plan, rows, device)
        self.experiment = experiment
        self.state: State = new_state(located, device)
        self.checkpointer = AsyncCheckpointer(self.files.state)

    def run(self) -> None:
        """Continues from the checkpoint if there is one, trains to the end, writes the bundle."""
        saved = checkpoint.load(self.files.state, self._note)
        if saved is not None:
            stage = saved["progress"]["stage"]
            length = epochs.length(self.state.config.train.stages[stage], self.plan.steps[stage])
            self.state.load_state_dict(saved, length.steps)
        self._compute_features()
        self._ask_teacher()
        for _ in epochs.remaining(self.state, self.plan.steps):
            self._epoch()
        self.checkpointer.wait()
        self._save_bundle()

    def _compute_features(self) -> None:
        """Computes a frozen backbone's features once, so that epochs read them from memory."""
        state = self.state
        faces = len(self.plan.faces["train"]) + len(self.plan.faces["val"])
        if not feature_store.applies(state.config, state.network, faces):
            return
        started = time.perf_counter()
        self.streams.compute_features(state)
        feature_store.pass_features_on(state.network)
        if state.ema_network is not None:
            feature_store.pass_features_on(state.ema_network)
        seconds = time.perf_counter() - started
        self._note(
            f"the body is frozen: its features of {faces:,} faces were computed once, in {seconds:.0f} s"
        )

    def _ask_teacher(self) -> None:
        """Shows every training face to the teacher, once a run (`train.teacher_faces: aligned`)."""
        state = self.state
        if state.config.train.teacher_faces != "aligned":
            return
        found = teacher.load(state.config, state.device)
        if found is None:
            return
        count = len(self.plan.faces["train"])
        own = teacher.read(self.files.teacher, count) if self.rank == 0 else None
        kept = distributed.all_gather_object(own)[0]
        if kept is not None:
            self.streams.taught = kept
            return
        started = last_report = time.perf_counter()

        def report(shown: int) -> None:
            nonlocal last_report
            now = time.perf_counter()
            if self.rank == 0 and now - last_report > _REPORT_SECONDS:
                last_report, images = now, shown * self.world
                record = {"kind": "teacher", "images": min(images, count), "total": count}
                self.queue.put(record | {"images_s": images / (now - started)})

        answers = self.streams.ask(found, report)
        if self.rank == 0:
            teacher.write(self.files.teacher, answers)
        self._note(f"the teacher saw {count:,} faces once, in {time.perf_counter() - started:.0f} s")

    def _note(self, text: str) -> None:
        """Shows a line to the user, once."""
        if self.rank == 0:
            self.queue.put({"kind": "note", "text": text})

    def _epoch(self) -> None:
        """The rest of an epoch, its validation, its record and its checkpoint."""
        state, scale = self.state, self.state.config.scale
        if state.step == 0 and state.network.num_init_faces:
            init_network(state, self.streams.training(state).batches)
        faces = self.streams.training(state)
        started = time.perf_counter() - state.epoch_progress.seconds
        with profiling.trace(self.files.trace, scale.profile and self.rank == 0) as profiled:
            report_step = self._progress(profiled)
            result = train_one_epoch(
                state, faces.batches, report_step, self._save_checkpoint, scale.checkpoint_steps
            )
        skipped = []
        for rows in distributed.all_gather_object(faces.ordered.skipped):
            skipped += rows
        if result.images == 0:
            stage = state.config.train.stages[state.stage]
            raise no_face(", ".join(self.plan.folders(stage)), "", skipped)
        self._sync_batch_stats()
        gallery = None
        if self.plan.parts["val"]:
            gallery = self._gallery(state.config.model.decode.gallery.validation_faces)
        validated = validate(state, self.streams.whole("val"), gallery)
        seconds = time.perf_counter() - started
        record = epochs.close(state, result, validated, seconds, len(skipped), faces.batches.waited)
        if self.rank == 0:
            self._write(record)
        self._save_checkpoint()
        ray.train.report({"val_mae": record["val_mae"], "epoch": state.epoch})

    def _progress(self, profiled: profiling.Step) -> Callable[[int, int], None]:
        """`report_step` of an epoch: sends its progress every two seconds, and raises if the last
        checkpoint could not be written."""
        state, last_report = self.state, 0.0
        started, first = time.perf_counter(), state.epoch_progress.images

        def report_step(step: int, images: int) -> None:
            nonlocal last_report
            profiled()
            self.checkpointer.check()
            seconds = time.perf_counter() - started
            pause = 0.0
            if last_report:
                pause = _REPORT_SECONDS
            if self.rank == 0 and seconds - last_report > pause:
                last_report = seconds
                record = {
                    "kind": "step",
                    "epoch": state.epoch,
                    "epochs": state.total_epochs,
                    "step": step,
                    "steps": state.epoch_steps,
                    "images_s": (images - first) / seconds,
                    "seconds": seconds,
                }
                self.queue.put(record)

        return report_step

    def _sync_batch_stats(self) -> None:
        """Replaces the running batch statistics by their mean over the workers.

        They are means themselves, so the mean may be taken at any step.
        """
        network, ema_network = self.state.network, self.state.ema_network
        statistics = []
        for buffer in network.buffers():
            if buffer.is_floating_point():
                statistics.append(buffer)
        distributed.average(statistics)
        if ema_network is not None:
            for ema_buffer, buffer in zip(ema_network.buffers(), network.buffers(), strict=True):
                ema_buffer.copy_(buffer)

    def _save_checkpoint(self) -> None:
        self._sync_batch_stats()
        if self.rank == 0:
            self.checkpointer.save(self.state.state_dict())

    def _write(self, record: dict[str, Any]) -> None:
        """Writes the weights, if this epoch is the best, and the log; sends the record to the
        driver.
        """
        state = self.state
        if record["best"]:
            weights = state.eval_network.state_dict()
            contiguous = {name: tensor.contiguous() for name, tensor in weights.items()}
            storage.write_checked(self.files.best, save_safetensors(contiguous))
        storage.write_text(self.files.log, to_lines(state.log))
        storage.write_bytes(self.files.curves, curves.learning_curves(state.log))
        storage.write_bytes(self.files.events, curves.events(state.log))
        self.queue.put(record)

    def _gallery(self, most: int | None = None) -> Gallery | None:
        """The gallery of the first `most` training faces of the data set, or of all.

        None for a model that needs no gallery.
        """
        if self.state.config.model.decode.method != "gallery":
            return None
        batches = self.streams.whole("train", most)
        gallery = build_gallery(self.state, batches)
        if gallery is None:
            raise no_face(", ".join(self.plan.folders()), " for the gallery", batches.skipped)
        return gallery

    def _save_bundle(self) -> None:
        """Writes the best weights as a bundle.

        A draft is written first: the predictor that will serve the model predicts the validation
        faces with it, and the bundle is calibrated on these predictions.
        """
        state = self.state
        network = state.eval_network
        try:
            best = storage.read_checked(self.files.best)
        except DamagedError as error:
            raise UserError(f"{error}; train anew with --fresh") from None
        network.load_state_dict(load_safetensors(best))
        card = {"model": state.config.model.name, "training": self.plan.facts, "epochs": state.epoch}
        if state.config.train.wise_ft and self.plan.parts["val"]:
            start = wise_ft.start_weights(state.config)
            card["wise_ft"] = wise_ft.choose(state, start, lambda: validate(state, self.streams.whole("val")))
        draft, gallery = self.files.draft_bundle, self._gallery()
        self.streams.features = None  # the predictor takes pixels
        if self.rank == 0:
            bundle.save(draft, network, self.experiment, card, gallery)
        self._barrier()
        predictor = Predictor(bundle.load(draft), device=str(state.device), threads=threads(state.config))
        predictions = _predict_all(predictor, self.streams.whole("val"))
        self._barrier()
        if self.rank == 0:
            card = _calibrated(dict(predictor.bundle.card), predictions, state.config, self.plan)
            bundle.save(self.files.bundle, network, self.experiment, card, gallery)
            storage.remove_tree(draft)

    def _barrier(self) -> None:
        if self.world > 1:
            torch.distributed.barrier()


def _calibrated(
    card: dict[str, Any], predictions: dict[str, Any], config: Experiment, plan: Plan
) -> dict[str, Any]:
    """The card with `calibration` and `validation`; as it is if there are no validation faces."""
    true = predictions["age"]
    if not len(true):
        return card
    raw = predictions["decoded"], predictions["low"], predictions["high"]
    fitted = calibration.Calibration()
    if config.train.calibrate:
        fitted = calibration.fit(true, *raw)
        card["calibration"] = fitted.to_card()
    age, low, high = fitted.apply(*raw)
    card["validation"] = metrics.summary(true, age, low, high, plan.facts["train_ages"]["median"])
    plain = predictions["decoded"]
    card["validation"]["plain"] = {
        "mae": metrics.mean_absolute_error(true, plain),
        "bias": metrics.bias(true, plain),
    }
    return card


def _predict_all(predictor: Predictor, batches: UsableBatches) -> dict[str, Any]:
    """`age`, the true one, and `decoded`, `low`, `high` before calibration: (N,) each, in years.

    The faces are those of all workers, in the order of the shards.
    """
    rows = [np.zeros((0, 5))]
    for batch in batches:
        decoded = predictor.predict(batch["canvas"], batch["points"], batch["box"], batch["subject"]).decoded
        rows.append(np.column_stack([batch["row"], batch["age"], decoded[:, :3]]))
    table = np.concatenate(distributed.all_gather_object(np.concatenate(rows)))
    table = table[np.argsort(table[:, 0], kind="stable")].astype(np.float32)
    return dict(zip(("age", "decoded", "low", "high"), table[:, 1:].T, strict=True))
