"""What TensorFlow Federated 0.87.0 misses on Python 3.12 and 3.13.

Its metadata allow Python below 3.12 and TensorFlow 2.14, but its Python files and its
worker, which has a TensorFlow 2.14 of its own, work on newer ones after these repairs.
TFF's versions after 0.87.0, which are not on the package index, need none of them.
"""

from __future__ import annotations

import importlib
import importlib.abc
import sys
from typing import Any

# Modules of TensorFlow Privacy whose classes TFF looks up in its root.
_QUERIES = (
    "dp_query distributed_discrete_gaussian_query distributed_skellam_query "
    "gaussian_query no_privacy_query normalized_query quantile_adaptive_clip_sum_query "
    "quantile_adaptive_clip_tree_query quantile_estimator_query restart_query "
    "tree_aggregation_query tree_range_query"
).split()


class _Finder(importlib.abc.MetaPathFinder):
    """Finds nothing; prepares the import of TFF, whoever imports it."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == "tensorflow_federated":
            sys.meta_path.remove(self)
            _import_queries_of_tensorflow_privacy()
            _restore_names_of_jaxlib()
            _restore_buffer_of_record_files()


def install() -> None:
    """Prepares a later import of TFF; on Python 3.12 and newer only."""
    if sys.version_info >= (3, 12):
        sys.meta_path.insert(0, _Finder())


def _import_queries_of_tensorflow_privacy() -> None:
    # 0.9.0 imports estimators, which ended with TensorFlow 2.15. Its own switch, an
    # attribute of `sys`, leaves them out, but with them the queries.
    sys.skip_tf_privacy_import = True  # type: ignore[attr-defined]
    try:
        privacy = importlib.import_module("tensorflow_privacy")
    finally:
        del sys.skip_tf_privacy_import  # type: ignore[attr-defined]
    for name in _QUERIES:
        module = importlib.import_module(f"{privacy.__name__}.privacy.dp_query.{name}")
        classes = {k: v for k, v in vars(module).items() if isinstance(v, type)}
        vars(privacy).update({name: module, **classes})


def _restore_names_of_jaxlib() -> None:
    # jax 0.4.36 and newer do not have them. TFF uses them in annotations, and in
    # functions for JAX computations, which then raise an error.
    from jax.lib import xla_client

    for name in ("XlaComputation", "Shape"):
        if not hasattr(xla_client, name):
            setattr(xla_client, name, type(name, (), {}))


def _restore_buffer_of_record_files() -> None:
    # Newer TensorFlows leave the size to the kernel by a -1, which the worker refuses.
    from tensorflow.python.data.ops import readers

    if hasattr(readers, "_DEFAULT_TF_RECORD_BUFFER_SIZE_BYTES"):
        readers._DEFAULT_TF_RECORD_BUFFER_SIZE_BYTES = (
            readers._DEFAULT_READER_BUFFER_SIZE_BYTES
        )
