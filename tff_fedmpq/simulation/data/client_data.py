"""Client data of a data set's training examples, by a partition.

    Partition --> arrays by client id --> files --> ClientData

`array_client_data` has the files. The type of `dataset_computation` is
`(str -> <uint8[h,w,c], int32>*)`: only client ids are sent to the process that runs it.
"""

from tff_fedmpq._tff import tff
from tff_fedmpq.files import PathLike
from tff_fedmpq.simulation.data.array_client_data import client_data_from_arrays
from tff_fedmpq.simulation.data.image_dataset import ImageDataset
from tff_fedmpq.simulation.data.partitions import Partition


def build_client_data(
    directory: PathLike,
    dataset: ImageDataset,
    partition: Partition,
    *,
    relative: bool = False,
) -> tff.simulation.datasets.ClientData:
    """Builds a `ClientData` of the training examples, over files in `directory`.

    Client ids are in the partition's order. A client without examples has an empty
    dataset. A partition that was made for other data is a ValueError. With `relative`,
    a worker reads them below its own folder (its `--data_dir`), not `directory`.
    """
    if partition.dataset and partition.dataset != dataset.name:
        raise ValueError(
            f"partition: expected one of {dataset.name}, found one of "
            f"{partition.dataset}; partition the labels of {dataset.name}."
        )
    arrays = partition.split(dataset.train_images, dataset.train_labels)
    return client_data_from_arrays(arrays, directory, relative=relative)
