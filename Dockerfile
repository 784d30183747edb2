# The image of every node of cluster.yaml: Ray, and everything that ageray needs. A submitted job brings
# its own copy of the code, which is used instead of this one. Build again when pyproject.toml changes.
#
#   docker build -t REGISTRY/ageray:0.2 . && docker push REGISTRY/ageray:0.2

FROM rayproject/ray:2.60.0-py311-gpu
COPY --chown=ray:users . /tmp/ageray
RUN pip install --no-cache-dir /tmp/ageray && rm -rf /tmp/ageray
