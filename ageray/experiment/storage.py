"""`storage`: where `s3://` is."""

from __future__ import annotations

from ageray.experiment.strict import Strict


class Storage(Strict):
    """The object store. Credentials are not settings. They come from the usual AWS variables, files
    or roles of each machine.
    """

    endpoint_url: str | None = None
    """Address of an S3-compatible server, e.g. `http://127.0.0.1:9000`; null takes
    `AWS_ENDPOINT_URL` or, without it, AWS.
    """
