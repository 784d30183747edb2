"""`scale`: workers, CPUs, GPUs and memory."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ageray.experiment.strict import Count, Positive, Strict


class Scale(Strict):
    """Workers, their CPUs and GPUs, and the folder of the runs."""

    engine: Literal["auto", "local", "ray"] = "auto"
    """What computes for `ageray score` and `ageray prepare`: `local`, a pool of processes on this
    machine; `ray`, the cluster of RAY_ADDRESS or a Ray of this machine's own. `auto` takes Ray
    where a cluster is named, and for much work where there is a GPU.
    """
    runs: str = "runs"
    """Folder of the run folders; local path or url."""
    workers: Count | tuple[Count, Count] = 1
    """Training workers: a number, or [least, most] for as many as there is room for. A batch is cut
    into equal parts, so each number in this range must divide `train.batch_size`.
    """
    checkpoint_steps: Annotated[int, Field(ge=0)] = 500
    """Steps between two checkpoints within an epoch, from which an interrupted run continues; 0
    writes one after each epoch only.
    """
    max_failures: Annotated[int, Field(ge=0)] = 3
    """How often a run that lost a worker or node continues from its last checkpoint by itself."""
    profile: bool = False
    """Write a trace of ten training steps, with the waiting for data, into the run folder
    (`trace.json`, for perfetto.dev or chrome://tracing).
    """
    gpu: bool | Literal["auto"] = "auto"
    """Whether each worker takes a GPU; `auto` takes one where the cluster has any."""
    detect: Literal["auto", "cpu", "gpu"] = "auto"
    """Where `ageray score` with Ray finds faces: `cpu`, in the tasks that decode; `gpu`, in the
    actors that hold the model, so that the tasks only decode. `auto` takes `gpu` where these actors
    have GPUs.
    """
    cpus_per_worker: Positive = 1
    """Logical CPUs that Ray reserves for each training or scoring worker. A scoring worker that
    finds faces on a GPU takes at least 0.3 of the CPUs that its machine has for each GPU.
    """
    align_gpus: Annotated[float, Field(ge=0, le=1)] = 0.0
    """GPU, or a share of one, of each aligning actor (`align.placement: actors`); 0 aligns on a
    CPU.
    """
    threads: Annotated[int, Field(ge=0)] = 0
    """Compute threads of a worker; 0 means all cores of a machine on which it is alone, else its
    CPUs.
    """
    local_cpus: Annotated[int, Field(ge=0)] = 0
    """Logical CPUs of the Ray that starts by itself when there is no cluster; 0 means the machine's
    cores, but at least 4 (with fewer, the actors can occupy every CPU, so that no task can produce
    the data that they wait for)."""
    object_store_mib: Annotated[int, Field(ge=0)] = 0
    """Object store of that Ray in MiB; 0 means Ray's own default."""
    decode_batch: Count = 32
    """Images of one batch of a decoding task."""
    score_batch: Annotated[int, Field(ge=0)] = 0
    """Faces a forward pass when scoring; 0 means 256 on a GPU and 64 on CPUs."""
    score_workers: Annotated[int, Field(ge=0)] = 0
    """Scoring actors. 0 means one a GPU; without GPUs, one for up to 4 logical CPUs and one more
    for every second CPU beyond.
    """
    cuda_graphs: bool = True
    """Whether a scoring GPU replays its work on a batch as a CUDA graph, one launch instead of some
    hundreds. Where that fails, a line of the log says so, and batches are launched as before;
    `false` also frees the graphs' memory.
    """
    cache_gib: Annotated[float, Field(ge=0)] | None = None
    """Memory in GiB, of each training worker, for decoded faces that stay from one epoch to the
    next: on a GPU in its own memory if they fit there, else in the machine's. `null` takes 0.6 of a
    GPU's free memory, or a quarter of the machine's for all of its workers; 0 keeps none, so that
    every epoch reads and decodes all faces.
    """
    parallel_trainings: Annotated[int, Field(ge=0)] = 0
    """Trainings at once: folds of `ageray evaluate --protocol`, and trials of `ageray tune` unless
    `tune.at_once` is set. 0 means one a GPU, or as many as the cores allow at `cpus_per_worker`
    each. More trainings than GPUs share the GPUs evenly.
    """
    audit: bool = True
    """Whether `ageray train`, before it starts, looks for test images that are in training too.
    `ageray evaluate` always does. The first audit of a set computes a fingerprint of every face,
    some hundreds a second and core, and stores them beside the shards.
    """
    progress: bool = True
    """Whether commands show progress: a bar, and the epoch table of `ageray train`."""
    trackers: tuple[Literal["mlflow", "wandb"], ...] = ()
    """Trackers of experiments that get the figures of each epoch, besides TensorBoard's file. Each
    needs its package: `pip install 'ageray[mlflow]'` or `'ageray[wandb]'`. Without a server (see
    MLFLOW_TRACKING_URI, WANDB_API_KEY) they write to `runs`."""

    def faces_a_batch(self, on_gpu: bool) -> int:
        """The batch size of scoring: `score_batch`, or its default if it is 0."""
        return self.score_batch or (256 if on_gpu else 64)
