"""Settings: YAML files and key=value overrides become one validated `Experiment`, or one message that lists every mistake."""

from ageray.config.load import (
    ParsedConfig,
    difference,
    digest,
    dump,
    json_schema,
    load,
    loads,
    parse_arguments,
    read,
)

__all__ = [
    "ParsedConfig",
    "difference",
    "digest",
    "dump",
    "json_schema",
    "load",
    "loads",
    "parse_arguments",
    "read",
]
