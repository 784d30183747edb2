"""`python -m ageray.config` prints the JSON schema of the settings files, for editors; with
`--page`, the page of all settings, docs/settings.md."""

import json
import sys

from ageray.config.experiments import json_schema
from ageray.config.page import settings_page

if sys.argv[1:] == ["--page"]:
    print(settings_page(), end="")
else:
    print(json.dumps(json_schema(), indent=2))
