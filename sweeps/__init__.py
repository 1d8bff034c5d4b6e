"""What to run and what the curves say: pure planning and analysis (numpy, scipy, pyarrow)."""

from importlib.metadata import version

__version__ = version("powersweep")
