"""Training on Ray: Ray Data streams canvases into a Ray Train worker, which runs the plain loop."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, DataConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.queue import Queue
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from ageray import bundle, calibration, metrics, storage
from ageray.data.stream import Usable, face_stream
from ageray.errors import UserError
from ageray.experiment import Experiment
from ageray.models.gallery import Gallery
from ageray.predictor import Predictor
from ageray.train import epochs
from ageray.train import plan as planning
from ageray.train.loop import State, make_gallery, new_state, start, train_one_epoch, validate
from ageray.train.plan import Plan

_STATE = "state.pt"
_PREFETCH = 3  # batches decoded ahead
_REPORT_SECONDS = 2.0  # between two progress messages
Record = dict[str, Any]


def train(experiment: Experiment, plan: Plan, show: Callable[[Record], None]) -> None:
    """Trains on the connected cluster until the run folder has a bundle; continues a run that was interrupted.

    `show` receives progress (`kind` "step") and epoch records (`kind` "epoch") as they come.
    Raises UserError if a GPU is asked for where there is none.
    """
    scaling = _scaling(experiment)
    filesystem, path = storage.filesystem(plan.folder)
    parent, _, name = path.rpartition("/")
    options = DataConfig.default_ingest_options()
    options.preserve_order = True  # the order of the rows is part of what a seed fixes
    queue = Queue(actor_options={"num_cpus": 0})
    trainer = TorchTrainer(
        _work,
        train_loop_config={"experiment": experiment.model_dump(mode="json"), "plan": plan, "queue": queue},
        scaling_config=scaling,
        run_config=RunConfig(
            name=name, storage_path=parent, storage_filesystem=filesystem, checkpoint_config=CheckpointConfig(num_to_keep=1)
        ),
        datasets=_datasets(experiment, plan),
        dataset_config=DataConfig(datasets_to_split=[], execution_options=options),
    )
    listener = Thread(target=_listen, args=(queue, show), daemon=True)
    listener.start()
    try:
        trainer.fit()
    finally:
        queue.put(None)
        listener.join()
        queue.shutdown()


def _listen(queue: Queue, show: Callable[[Record], None]) -> None:
    while (record := queue.get()) is not None:
        show(record)


def _scaling(experiment: Experiment) -> ScalingConfig:
    scale = experiment.scale
    there = ray.cluster_resources().get("GPU", 0)  # type: ignore[no-untyped-call]
    if scale.gpu is True and there < scale.workers:
        raise UserError(f"scale.gpu=true: the cluster has {there:g} GPUs for {scale.workers} workers; set scale.gpu=false or add GPUs")
    use_gpu = there >= scale.workers if scale.gpu == "auto" else scale.gpu
    return ScalingConfig(
        num_workers=scale.workers, use_gpu=use_gpu, resources_per_worker={"CPU": scale.cpus_per_worker, "GPU": int(use_gpu)}
    )


def _datasets(experiment: Experiment, plan: Plan) -> dict[str, Any]:
    """One stream a stage, `stage-0` and so on, `val`, and `gallery` (the data set's training part) where ages come from one."""
    split, batch = storage.join(plan.folder, planning.SPLIT), experiment.scale.decode_batch
    own = str(experiment.data.shards)
    streams: dict[str, Any] = {}
    for index, stage in enumerate(experiment.train.stages):
        part = (None, None) if stage.shards else (split, "train")
        streams[f"stage-{index}"] = face_stream(stage.shards or own, experiment.align, batch, *part)
    streams["val"] = face_stream(own, experiment.align, batch, split, "val")
    if experiment.model.decode.method == "gallery":
        streams["gallery"] = face_stream(own, experiment.align, batch, split, "train")
    return streams


def _work(settings: dict[str, Any]) -> None:
    """The worker: all stages, epoch after epoch, then the bundle."""
    experiment, plan, queue = Experiment.model_validate(settings["experiment"]), settings["plan"], settings["queue"]
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(experiment.scale.threads or os.cpu_count() or 1)
    state = new_state(experiment, device)
    _resume(state, plan)
    for _ in epochs.remaining(state, plan.steps):
        _epoch(state, plan, queue)
    _finish(state, plan)


def _resume(state: State, plan: Plan) -> None:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return
    with checkpoint.as_directory() as folder:
        saved = torch.load(Path(folder) / _STATE, map_location=state.device, weights_only=True)
    stage = saved["progress"]["stage"]
    state.load_state_dict(saved, plan.steps[stage] * state.config.train.stages[stage].epochs)


def _epoch(state: State, plan: Plan, queue: Queue) -> None:
    """One epoch, its validation, its record and its checkpoint."""
    config, number, steps = state.config.train, state.epoch, plan.steps[state.stage]
    if state.step == 0:
        start(state, _shuffled(state))
    batches = _shuffled(state)
    started, told = time.perf_counter(), 0.0

    def tell(step: int, images: int) -> None:
        nonlocal told
        now = time.perf_counter()
        if now - told > _REPORT_SECONDS:
            told = now
            queue.put(
                {
                    "kind": "step",
                    "epoch": number,
                    "epochs": sum(stage.epochs for stage in config.stages),
                    "step": step,
                    "steps": steps,
                    "images_s": images / (now - started),
                    "seconds": now - started,
                }
            )

    result = train_one_epoch(state, batches, tell)
    if result.images == 0:
        place = config.stages[state.stage].shards or state.config.data.shards
        key, reason = batches.skipped[0] if batches.skipped else ("", "no rows")
        raise UserError(f"data.shards={place}: no training face can be used; the first of {len(batches.skipped)}: {key}: {reason}")
    near = _gallery(state, state.config.model.decode.gallery.validation_faces) if plan.parts["val"] else None
    true, predicted = validate(state, _whole("val", config.batch_size), near)
    record = epochs.close(state, result, true, predicted, time.perf_counter() - started, len(batches.skipped))
    if record["best"]:
        weights = {name: tensor.contiguous() for name, tensor in state.judged.state_dict().items()}
        storage.write_bytes(storage.join(plan.folder, planning.BEST), save_safetensors(weights))
    storage.write_text(storage.join(plan.folder, planning.LOG), planning.to_lines(state.log))
    with tempfile.TemporaryDirectory() as folder:
        torch.save(state.state_dict(), Path(folder) / _STATE)
        ray.train.report({"val_mae": record["val_mae"], "epoch": state.epoch}, checkpoint=Checkpoint.from_directory(folder))
    queue.put(record)


def _shuffled(state: State) -> Usable:
    """The stage's training faces in this epoch's order, in full batches."""
    config = state.config.train
    stream = ray.train.get_dataset_shard(f"stage-{state.stage}")
    return Usable(
        stream.iter_batches(
            batch_size=config.batch_size,
            batch_format="numpy",
            drop_last=True,
            prefetch_batches=_PREFETCH,
            local_shuffle_buffer_size=max(config.shuffle, config.batch_size),
            local_shuffle_seed=config.seed * 10_000 + state.epoch,
        )
    )


def _whole(name: str, batch_size: int) -> Usable:
    """Every usable face of a stream once, in order."""
    shard = ray.train.get_dataset_shard(name)
    return Usable(shard.iter_batches(batch_size=batch_size, batch_format="numpy", prefetch_batches=_PREFETCH))


def _finish(state: State, plan: Plan) -> None:
    """The best weights as a bundle, calibrated on the validation part through the predictor that will serve it."""
    network = state.judged
    network.load_state_dict(load_safetensors(storage.read_bytes(storage.join(plan.folder, planning.BEST))))
    folder = storage.join(plan.folder, bundle.IN_RUN)
    card: dict[str, Any] = {"model": state.config.model.name, "training": plan.facts, "epochs": state.epoch}
    draft = folder + ".unfinished"
    gallery = _gallery(state)
    bundle.save(draft, network, state.config, card, gallery)
    predictor = Predictor(bundle.load(draft), device=str(state.device), threads=state.config.scale.threads)
    found = _predict_all(predictor, _whole("val", state.config.train.batch_size))
    card = dict(predictor.bundle.card)
    if len(found["age"]):
        fitted = calibration.Calibration()
        if state.config.train.calibrate:
            fitted = calibration.fit(found["age"], found["decoded"], found["low"], found["high"])
            card["calibration"] = fitted.to_card()
        age, low, high = fitted.apply(found["decoded"], found["low"], found["high"])
        card["validation"] = metrics.summary(found["age"], age, low, high, plan.facts["train_ages"]["median"])
    bundle.save(folder, network, state.config, card, gallery)
    storage.remove_tree(draft)


def _gallery(state: State, most: int | None = None) -> Gallery | None:
    """The judged network's gallery of the first `most` training faces of the data set, or of all; None for a model that needs none."""
    if state.config.model.decode.method != "gallery":
        return None
    batches = _whole("gallery", state.config.train.batch_size)
    made = make_gallery(state, batches, most)
    if made is None:
        reason = ": ".join(batches.skipped[0]) if batches.skipped else "no rows"
        raise UserError(f"data.shards={state.config.data.shards}: no training face can be used for the gallery; the first: {reason}")
    return made


def _predict_all(predictor: Predictor, batches: Usable) -> dict[str, Any]:
    """True age, decoded age and quantiles before calibration, of every face."""
    columns: dict[str, list[Any]] = {"age": [], "decoded": [], "low": [], "high": []}
    for batch in batches:
        decoded = predictor.predict(batch["canvas"], batch["points"], batch["box"], batch["subject"]).decoded
        columns["age"].append(batch["age"])
        for index, name in enumerate(("decoded", "low", "high")):
            columns[name].append(decoded[:, index])
    return {name: np.concatenate(parts) if parts else np.zeros(0, np.float32) for name, parts in columns.items()}
