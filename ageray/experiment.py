"""The whole vocabulary of `configs/`: every key, its default, its unit and the paper's value.

An experiment has seven top-level keys. Three files share them out: *what* (`model`, `loss`, `align`, `train`), *on what* (`data`,
`protocol`) and *with what* (`scale`). Files and overrides are read by `ageray.config`; this module knows neither YAML nor torch nor Ray.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Strict(BaseModel):
    """Unknown keys are errors, values are immutable, attribute docstrings become the JSON schema's descriptions."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


# --- model ----------------------------------------------------------------------------------------------------------


class Decode(Strict):
    """From the posterior over age bins to an age in years."""

    method: Literal["expectation", "median", "argmax"] = "expectation"
    """`expectation` is sum of p_k y_k (DEX; DHAA and neighborhood papers), `median` the age where half of the posterior lies below."""
    flip: bool = True
    """Average the posterior of the face and of its mirror image (DHAA, section 4.2)."""


class ModelBase(Strict):
    """What every model has: age bins, a starting point and a way of decoding."""

    ages: tuple[int, int] = (0, 100)
    """First and last age bin in years, one bin a year (papers: 0..100). A range that reaches beyond the data, such as [-15, 120], lets a
    Gaussian-shaped target keep its mean at both ends, which takes the expectation's bias from infants and the very old."""
    weights: str = "none"
    """`none` (random), `imagenet` (torchvision's IMAGENET1K_V1, downloaded once) or a path or url of a safetensors file."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout before the classifier; share of activations set to 0."""
    decode: Decode = Decode()
    """How the posterior becomes an age."""

    @model_validator(mode="after")
    def _ages_ascend(self) -> Self:
        if self.ages[0] >= self.ages[1]:
            raise ValueError(f"ages must ascend, [first, last]; got {list(self.ages)}")
        return self


class Baseline(ModelBase):
    """'Res18+EX' of the DHAA paper: torchvision's ResNet-18, softmax over ages, expectation."""

    name: Literal["baseline"] = "baseline"
    """Selects this model."""


class ClusterCnn(ModelBase):
    """The GoogLeNet of the Cluster-CNN paper (ICIP 2018, section 3.3) with its plain head (the paper's strong baseline, section 4.1.1)."""

    name: Literal["cluster_cnn"]
    """Selects this model."""
    head: Literal["plain"] = "plain"
    """`plain`: one linear classifier on the pooled features."""


Model = Annotated[Baseline | ClusterCnn, Field(discriminator="name")]


# --- loss -----------------------------------------------------------------------------------------------------------


class Term(Strict):
    """One term of the weighted sum."""

    weight: Positive = 1.0
    """Factor of this term in the sum (beta of the Deep Embedding paper is `loss.cross_entropy.weight`)."""


class CrossEntropy(Term):
    """Softmax cross entropy on the age bin (DEX)."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target spread evenly over all bins."""


class Neighborhood(Term):
    """Neighborhood loss: cross entropy against Gaussian-shaped targets exp(-(k - k_n)^2 / sigma^2) (Kwak et al., Eq. 5)."""

    sigma: Positive = 5.0
    """Width of the target in years (paper: 5); the Gaussian's standard deviation is sigma / sqrt(2)."""
    normalize: bool = False
    """Divide the targets by their sum: DLDL's cross entropy. The paper's Eq. 5 does not."""


class Loss(Strict):
    """Terms by name, each with its options; a term that is not named is not used."""

    cross_entropy: CrossEntropy | None = None
    """Softmax cross entropy."""
    neighborhood: Neighborhood | None = None
    """Gaussian-shaped targets."""


# --- align ----------------------------------------------------------------------------------------------------------


class Align(Strict):
    """From a photo and five points to the network's square input; the same in training, evaluation, scoring and serving."""

    mode: Literal["similarity", "eyes", "box", "none"] = "similarity"
    """`similarity`: five points to a template by least squares. `eyes`: an upright square of `eyes_scale` x eye distance (Cluster-CNN,
    section 3.1). `box`: the detector's box, enlarged by `coverage`, as a square. `none`: the whole image, resized."""
    size: Annotated[int, Field(ge=16, le=1024)] = 128
    """Side of the network's input in pixels (Cluster-CNN 128, neighborhood 224, DHAA 256)."""
    coverage: Positive = 1.0
    """How much of the head shows: side of the crop relative to the template's own framing (`similarity`; 1 is hairline to chin) or to the
    box's longer side (`box`)."""
    eyes_scale: Positive = 3.2
    """alpha of `eyes`: side of the square in eye distances (the paper gives no number; 3.2 lets the whole face fit)."""
    standardize: bool = False
    """Give each colour channel of each face the same mean and contrast, measured on the middle of the crop: takes out colour casts, faded
    prints and exposure, in training and in use."""
    fill: Annotated[int, Field(ge=0, le=255)] = 117
    """Gray value of pixels outside the photo."""


# --- train ----------------------------------------------------------------------------------------------------------


class Augment(Strict):
    """Random changes of a training face. The geometric ones join the alignment in one resampling; the others act on the aligned face."""

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
    """One of the papers' optimisers, with a rate for the new layers and one for the pretrained body."""

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    """`sgd` uses Nesterov momentum (DHAA); `adam` with beta1 0.9 (Cluster-CNN, neighborhood)."""
    lr: Positive = 3e-4
    """Peak learning rate of the head (and of everything where `body_lr` is null)."""
    body_lr: Annotated[float, Field(ge=0)] | None = None
    """Peak learning rate of the backbone; 0 freezes it."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """L2 penalty (decoupled for adamw); biases and norms are exempt."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of sgd, beta1 of adam and adamw."""


class Schedule(Strict):
    """Learning rate over a stage, as a factor of the peak."""

    name: Literal["constant", "cosine", "step"] = "cosine"
    """`step` divides by 10 at each milestone (DHAA, neighborhood)."""
    warmup: Share = 0.05
    """Share of the stage's steps over which the rate climbs linearly from 0."""
    milestones: tuple[Share, ...] = (0.5, 0.75)
    """Where `step` divides, as shares of the stage's steps."""


class Stage(Strict):
    """A stretch of training with one optimiser; pretraining on another set is a stage with its own shards."""

    name: str = "train"
    """Shown in the log."""
    epochs: Count = 10
    """Passes over the stage's training rows."""
    optimizer: Optimizer = Optimizer()
    """Optimiser and rates."""
    schedule: Schedule = Schedule()
    """Rate over time."""
    shards: str | None = None
    """Face shards to train on instead of `data.shards`, all of their rows (the papers pretrain on IMDB-WIKI); null uses `data.shards`."""


class Train(Strict):
    """How the weights come about."""

    stages: Annotated[tuple[Stage, ...], Field(min_length=1)] = (Stage(),)
    """One after the other; each starts a new optimiser on the weights so far."""
    batch_size: Count = 64
    """Faces a step, over all workers (Cluster-CNN 128)."""
    shuffle: Count = 1024
    """Faces in the buffer from which batches are drawn at random; shards are written in random order, so a small one mixes well."""
    precision: Literal["float32", "bf16"] = "bf16"
    """Autocast type of the forward pass; weights and losses stay float32."""
    augment: Augment = Augment()
    """Random changes of training faces."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay per step of an exponential moving average of the weights, which then is what is validated and kept; 0 is off."""
    clip: Annotated[float, Field(ge=0)] = 0.0
    """Largest norm of the gradient; 0 is off."""
    calibrate: bool = True
    """Fit, on the validation part, the line that maps predicted to true age, and the 90 % interval; stored in the bundle's card."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the initial weights, the order of the rows and the augmentation."""


# --- data, protocol -------------------------------------------------------------------------------------------------


class Detect(Strict):
    """The face detector (YuNet); the same settings at preparation and at scoring, or crops differ."""

    threshold: Share = 0.6
    """Least score of a face (0.8: hardly a false face; 0.6 finds more)."""
    max_side: Annotated[int, Field(ge=64)] = 640
    """Photos are shrunk for the detector until their longer side is at most this, in pixels. Points are in pixels of the photo."""
    pad: Annotated[float, Field(ge=0, le=1)] = 0.25
    """If nothing is found, look again with a border of this share of the side: faces that fill the picture need it."""


class Data(Strict):
    """A set of faces: where it comes from and where its shards are."""

    name: str = "faces"
    """Goes into the `dataset` column and the keys."""
    layout: Literal["auto", "utkface", "fgnet", "manifest", "folder"] = "auto"
    """How the source holds labels: in file names (`utkface`, `fgnet`), in a CSV or Parquet table (`manifest`), or not at all (`folder`)."""
    source: str | None = None
    """Folder or manifest that `jobs.prepare` reads; local path or url."""
    shards: str | None = None
    """Folder of face shards: written by `jobs.prepare`, read by the others; local path or url."""
    landmarks: Literal["auto", "source", "detect"] = "auto"
    """`source` takes the set's own points and fails where there are none, `detect` always runs YuNet, `auto` uses the source's where given."""
    detect: Detect = Detect()
    """Detector settings."""
    shard_mib: Positive = 256
    """Target size of one shard file in MiB."""


class Protocol(Strict):
    """Which faces train, which select (validation) and which test."""

    name: Literal["random", "all"] = "random"
    """`random`: seeded shares; faces of one subject stay together where subjects are known. `all`: every face is a test face (a set that
    the model has never seen)."""
    val: Share = 0.05
    """Share of the faces (or subjects) for validation."""
    test: Share = 0.1
    """Share of the faces (or subjects) for the test."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the split alone, so that models trained with different seeds share it."""

    @model_validator(mode="after")
    def _leaves_training_rows(self) -> Self:
        if self.val + self.test >= 1:
            raise ValueError(f"val + test must leave faces to train on; got {self.val} + {self.test}")
        return self


# --- scale ----------------------------------------------------------------------------------------------------------


class Scale(Strict):
    """The machine: how many workers, with what, and where runs are kept."""

    runs: str = "runs"
    """Folder of the run folders; local path or url."""
    workers: Count = 1
    """Training workers."""
    gpu: bool | Literal["auto"] = "auto"
    """Whether each worker takes a GPU; `auto` takes one where the cluster has any."""
    cpus_per_worker: Positive = 1
    """Logical CPUs that Ray reserves for each training or scoring worker."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Compute threads of a worker; 0 means all cores of a machine on which it is alone, else its CPUs."""
    local_cpus: Annotated[int, Field(ge=0)] = 0
    """Logical CPUs of the Ray that starts by itself when there is no cluster; 0 means the machine's cores, but at least 4 (with fewer,
    actors can hold every CPU and the data they wait for never comes)."""
    object_store_mib: Annotated[int, Field(ge=0)] = 0
    """Object store of that Ray in MiB; 0 leaves it to Ray."""
    decode_batch: Count = 32
    """Images per decoding task batch."""
    score_batch: Count = 64
    """Faces a forward pass when scoring."""
    score_workers: Annotated[int, Field(ge=0)] = 0
    """Scoring actors; 0 means one a GPU, or one for every 4 cores."""
    progress: bool = True
    """Ray Data's progress bars and the epoch table."""


class Experiment(Strict):
    """One validated experiment; the resolved form is the first file of a run folder."""

    model: Model = Baseline()
    """Which network."""
    loss: Loss = Loss()
    """Which loss terms."""
    align: Align = Align()
    """From photo to network input."""
    train: Train = Train()
    """Optimisation."""
    data: Data = Data()
    """Which faces."""
    protocol: Protocol = Protocol()
    """Which part does what."""
    scale: Scale = Scale()
    """With what machine."""
