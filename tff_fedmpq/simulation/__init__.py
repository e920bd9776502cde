"""Simulated runs on one machine.

data/            data sets, their partition over clients, files that clients read
models.py        networks by name
config.py        settings of a run, presets, command-line flags
compute.py       number format of the layers on this processor
experiment.py    a run: rounds, checkpoints, evaluation, result
run_files.py     output directory of a run
progress.py, releases.py, ledger.py, provenance.py    records of a run
report.py        table and figure of a finished run

Its modules are imported when they are used: settings and data need no TensorFlow.
"""
