"""Bring your own training function or script: it runs in a process of its own and reports its curve.

A script needs four names, and importing this package loads nothing heavy:

    from workloads.script import checkpoint_folder, report, resume_folder, trial
"""

from workloads.script.api import ScriptTrial, checkpoint_folder, report, resume_folder, trial
from workloads.script.run import ScriptError, ScriptRun
from workloads.script.workload import Script

__all__ = [
    "Script",
    "ScriptError",
    "ScriptRun",
    "ScriptTrial",
    "checkpoint_folder",
    "report",
    "resume_folder",
    "trial",
]
