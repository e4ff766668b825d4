"""Giving partitions another ledger: their raw file came again, with the bytes that it had.

The ledger stands in the names of a partition's files, so that these are copied under other names,
and a commit puts them in the place of those that they are copies of.
"""

import shutil
import uuid
from collections.abc import Mapping

from retail_assets.dataset import Dataset
from retail_assets.resources.lake.ledger import Ledger
from retail_assets.resources.lake.objects import LakeResource
from retail_assets.resources.lake.tables import NewFile, Snapshot
from retail_assets.resources.lake.vacuum import delete_replaced


def restamp(
    lake: LakeResource, dataset: Dataset, snapshot: Snapshot, ledgers: Mapping[str, Ledger]
) -> None:
    """Give the partitions of ``snapshot`` these ledgers, by one commit, and leave their rows.

    Where another writer has replaced one of them since, nothing is committed.
    """
    files = [file for key in ledgers for file in snapshot.by_key[key]]
    token = uuid.uuid4().hex
    below = len(dataset.location) + 1
    new, copies = [], {}
    with lake.scratch() as folder:
        for number, file in enumerate(files):
            place = file.name.rpartition("/")[0]
            name = f"{place}/{ledgers[file.key].file_name(f'{token}-{number}')}"
            # A copy and no link: vacuum must see that it is young.
            copies[name] = shutil.copyfile(lake.local_file(file.name), folder / str(number))
            new.append(NewFile(name[below:], file.key, file.rows, file.size))
        lake.put_files(copies)
    _, gone = lake.table(dataset).commit(
        new,
        in_place_of=[file.name for file in files],
        told={"touched": len(ledgers)},
    )
    delete_replaced(lake, gone)
