"""Settings: YAML files and key=value overrides become one validated object, or one message
that lists every mistake with file, line and the nearest valid key."""

from ageray.config.differences import differences, flat
from ageray.config.experiments import (
    ParsedConfig,
    digest,
    dump,
    json_schema,
    load,
    loads,
    read,
    with_absolute_paths,
)
from ageray.config.load import parse, parse_arguments

__all__ = [
    "ParsedConfig",
    "differences",
    "digest",
    "dump",
    "flat",
    "json_schema",
    "load",
    "loads",
    "parse",
    "parse_arguments",
    "read",
    "with_absolute_paths",
]
