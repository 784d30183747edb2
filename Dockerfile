# The image of every node of cluster.yaml and of k8s/: Ray, and everything that ageray needs. A submitted
# job brings its own copy of the code, which is used instead of this one. Build again when pyproject.toml
# changes.
#
#   docker build -t REGISTRY/ageray:0.2 . && docker push REGISTRY/ageray:0.2
#
# Without CUDA, half the size (docs/cluster.md): --build-arg BASE=rayproject/ray:2.60.0-py311-cpu
# --build-arg TORCH=INDEX, an index of CPU builds of PyTorch.

ARG BASE=rayproject/ray:2.60.0-py311-gpu
FROM ${BASE}
ARG TORCH=
COPY --chown=ray:users . /tmp/ageray
RUN pip install --no-cache-dir ${TORCH:+--extra-index-url ${TORCH}} /tmp/ageray && rm -rf /tmp/ageray
