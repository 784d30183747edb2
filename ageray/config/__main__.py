"""`python -m ageray.config` prints the JSON schema of the settings files, for editors."""

import json

from ageray.config.experiments import json_schema

print(json.dumps(json_schema(), indent=2))
