"""Puts conf/ into what is built, as splitlearn/conf. An editable install finds it beside splitlearn/."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConf(build_py):
    def run(self):
        super().run()
        if not self.editable_mode:
            self.copy_tree("conf", str(Path(self.build_lib, "splitlearn", "conf")))


setup(cmdclass={"build_py": BuildWithConf})
