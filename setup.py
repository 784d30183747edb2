"""Puts a copy of the folder `configs` into the package while a wheel is built, so that
`recipe:NAME` and `data:NAME` work without a checkout (`ageray.config.shipped`). All else is in
pyproject.toml.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Copies `configs` to `ageray/configs`. An editable installation reads the folder itself."""

    def run(self):
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "ageray", "configs")
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree("configs", target)


setup(cmdclass={"build_py": BuildWithConfigs})
