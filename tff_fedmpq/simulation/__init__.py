"""Runs of a process on one machine: data, runtime, rounds, evaluation, results.

datasets/, partition.py, client_data.py, augmentation.py, models.py      what goes in
config.py, compute.py, experiment.py                                     a whole run
runtime.py, checkpoints.py, progress.py, releases.py                     on the way
evaluation.py, ledger.py, provenance.py, report.py                       what comes out
comparison.py                                              several schemes side by side
reproduction/                                              the paper's tables, the study
files.py, waiting.py                                                     helpers
"""

from tff_fedmpq._tff import require_tff

require_tff()
