"""`train`: how the weights are trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ageray.experiment.strict import Count, Positive, Share, Strict


class Augment(Strict):
    """Random changes of a training face. The geometric ones join the alignment in one resampling;
    the others change the aligned face.
    """

    flip: Share = 0.5
    """Probability of mirroring."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 10.0
    """Uniform in +- this many degrees."""
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Uniform zoom in 1 +- this (epsilon of Cluster-CNN's crop, as a share of alpha)."""
    translation: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Uniform shift in +- this share of the side, each axis."""
    brightness: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Uniform factor in 1 +- this."""
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Uniform factor in 1 +- this, about the face's mean."""
    saturation: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Uniform factor in 1 +- this."""
    tint: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Uniform factor in 1 +- this for each colour channel: white balance, faded prints."""
    gamma: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Exponent, log-uniform between 1 - this and 1 / (1 - this): exposure and film."""
    gray: Share = 0.0
    """Probability of removing colour."""
    blur: Share = 0.0
    """Probability of a Gaussian blur of 0.3 to 2 pixels (at 128; in proportion to the size)."""
    downscale: Share = 0.0
    """Probability of shrinking to between 0.3 and 0.8 of the size and back."""
    jpeg: Share = 0.0
    """Probability of JPEG artefacts, quality 20 to 90."""
    noise: Share = 0.0
    """Probability of Gaussian noise with a standard deviation of up to 8 gray values."""
    erase: Share = 0.0
    """Probability of hiding a rectangle of 2 to 15 % of the area (random erasing)."""


class Optimizer(Strict):
    """One of the papers' optimisers, with a rate for the new layers and one for the pretrained
    backbone.
    """

    name: Literal["adamw", "adam", "sgd", "adadelta"] = "adamw"
    """`sgd` has momentum, by default Nesterov's (DHAA); `adam` with beta1 0.9 (Cluster-CNN,
    neighborhood); `adadelta` is the siamese paper's."""
    lr: Positive = 3e-4
    """Peak learning rate of the head (and of everything where `body_lr` is null)."""
    body_lr: Annotated[float, Field(ge=0)] | None = None
    """Peak learning rate of the backbone; 0 freezes it."""
    frozen_blocks: Annotated[int, Field(ge=0)] = 0
    """How many of the backbone's first blocks take no gradient. `mobilenet_v1` has 14 (the first
    convolution, then 13 separable blocks), `bvlc_googlenet` 11. torchvision's networks cannot be
    frozen in part."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """L2 penalty (decoupled for adamw); biases and norms are exempt."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of sgd, beta1 of adam and adamw."""
    nesterov: bool = True
    """Nesterov's momentum in sgd (DHAA); false is plain momentum, that of Caffe."""
    rho: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Decay of adadelta's running averages (Zeiler's paper and TensorFlow: 0.95; torch: 0.9)."""


class Schedule(Strict):
    """Learning rate over a stage, as a factor of the peak."""

    name: Literal["constant", "cosine", "step"] = "cosine"
    """`step` divides by 10 at each milestone (DHAA, neighborhood)."""
    warmup: Share = 0.05
    """Share of the stage's steps over which the rate climbs linearly from 0."""
    milestones: tuple[Share, ...] = (0.5, 0.75)
    """Where `step` divides, as shares of the stage's steps."""


class Stage(Strict):
    """A part of the training with one optimiser. Pretraining on another set is a stage with its own
    shards.
    """

    name: str = "train"
    """Shown in the log."""
    epochs: Count = 10
    """Passes over the stage's training rows."""
    steps: Count | None = None
    """Length of the stage in optimiser steps, in place of `epochs` (Deep Embedding: 297,000). The
    last epoch ends with the last step."""
    optimizer: Optimizer = Optimizer()
    """Optimiser and rates."""
    schedule: Schedule = Schedule()
    """Rate over time."""
    shards: str | None = None
    """Face shards to train on instead of `data.shards`, all of their rows (the papers pretrain on
    IMDB-WIKI); null uses `data.shards`.
    """


class Train(Strict):
    """How the weights are trained."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$", max_length=60)] | None = None
    """Name of the run's folder, before its digest; by default the names of the model and the
    set."""
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)] = (Stage(),)
    """One after the other; each starts a new optimiser on the weights so far."""
    batch_size: Count = 64
    """Faces a step, over all workers (Cluster-CNN 128)."""
    shuffle: Count = 1024
    """Faces in the buffer from which batches are drawn at random; shards are written in random
    order, so a small one mixes well.
    """
    shuffle_all: bool = False
    """Draw batches from all training faces, so that any two of them may meet (terms on pairs need
    it), and copies of a rare face (`balance`) spread over the epoch. Memory stays that of `shuffle`
    faces: an epoch reads the shards once for every `shuffle` faces. Where faces are held in memory,
    as in the folds of an evaluation, batches always are drawn from all."""
    precision: Literal["float32", "bf16", "fp16"] = "bf16"
    """Autocast type of the forward pass; weights and losses stay float32. `fp16` scales the loss so
    that small gradients survive, and validates in float32."""
    accumulate: Count = 1
    """Pieces in which a worker's part of a batch goes through the network before one step: memory
    for time. Equal to the whole batch but for batch statistics, dropout's draws, and terms on
    pairs, triplets and clusters, which see a piece."""
    compile: bool = False
    """Compile network and loss with torch.compile as one graph (with several workers the network
    alone): minutes before the first step, then faster on a GPU, where one worker without
    `accumulate` replays it as CUDA graphs (here slower on a CPU).
    """
    sync_batchnorm: bool = False
    """Batch statistics of the whole batch over all workers; else each worker's own, with which
    several workers differ a little from one.
    """
    mining: Literal["local", "global"] = "global"
    """Whose pairs and triplets `triplet`, `contrastive` and `gender_contrastive` use. `global`:
    those of all workers' faces, as with one worker. `local`: each worker's own; the term is the
    mean over the workers. With `accumulate` above 1 both see one piece of the batch at a time."""
    balance: Literal["none", "resample", "weights", "counts"] = "none"
    """How to even out the ages of training faces. `resample`: an epoch shows each year of age
    equally often, as far as no face comes more than ten times. `weights`: a face counts in the loss
    by the inverse of how common its age is, at most ten times as much as the mean; terms on pairs,
    triplets and clusters are not weighted. `counts`: the rule of the neighborhood paper, section
    5.1. In an epoch a year of age with fewer than `balance_count` faces shows `balance_count`, each
    repeat with its own augmentation; a year within `thinned_ages` with more shows `balance_count`
    of them, drawn anew each epoch; all other years stay as they are."""
    balance_count: Count = 5000
    """Faces a year of age with `balance: counts` (paper: 5,000)."""
    thinned_ages: tuple[int, int] = (20, 60)
    """First and last year of age that `balance: counts` thins out (paper: 20 to 60)."""
    balance_power: Annotated[float, Field(gt=0, le=1)] = 1.0
    """How far `balance` goes. A face counts by the number of training faces of its year of age, to
    the power of minus this. 1 evens the years out; 0.25 makes an age that is sixteen times as rare
    count twice."""
    select: Literal["mae", "decades"] = "mae"
    """The validation figure that chooses the best epoch: the mean absolute error, or its mean over
    the decades of true age and over the sets of `data.sets`, in which common ages and the largest
    set have no more weight than others."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Epochs of the last stage without a better validation figure (`select`) after which training
    ends; 0 never."""
    augment: Augment = Augment()
    """Random changes of training faces."""
    sizes: tuple[Annotated[int, Field(ge=16, le=1024)], ...] = ()
    """Sides of the network's input in pixels, of which each step draws one: a network that is used
    at several sizes (`model.decode.views`) or on photos of all scales learns them all. One that is
    listed twice comes twice as often. Empty takes `align.size`. Validation always does."""
    teacher: str | None = None
    """The teacher of `loss.distillation`. `start` is the network itself before training, so that it
    does not unlearn its published ages. Anything else is a model (`zoo:NAME`, a bundle or a run
    folder) with the same `model.ages` and `align`."""
    teacher_faces: Literal["augmented", "aligned"] = "augmented"
    """What the teacher sees. `augmented`: the faces of each step, in one view. `aligned`: each
    training face once, before the first step, as the teacher scores it, with all of its views. A
    slow ensemble then costs one pass over the faces, and the network learns to give for every
    change of a face what the teacher gives for the face itself."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay per step of an exponential moving average of the weights, which is then validated and
    saved. 0 is off.
    """
    wise_ft: tuple[Share, ...] = ()
    """Shares of the way from the weights of `model.weights` to the trained ones (WiSE-FT), such as
    [0.5, 0.75]. After training each is validated, and the best by `select`, or the trained weights,
    are saved. Each costs one validation. Empty is off."""
    clip: Annotated[float, Field(ge=0)] = 0.0
    """Largest norm of the gradient; 0 is off."""
    calibrate: bool = True
    """Fit the line from predicted to true age and the 90 % interval on the validation faces, and
    store both in the bundle's card.
    """
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the initial weights, the order of the rows and the augmentation."""
