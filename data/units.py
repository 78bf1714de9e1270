"""Units of a batch job: one input file and the one output file that it becomes, and which of them are to be done."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from data.output import output_name
from data.table import Table


def units_to_do(table: Table, done: Mapping[str, Any], present: Collection[str]) -> list[dict[str, Any]]:
    """Returns the files that the manifest lacks, or whose content or output is not what it says.

    done: output name -> what the manifest says of it; present: the output files that are there.
    """
    units = []
    for file in table.files:
        name = output_name(file.relative_path)
        known = done.get(name)
        if known is not None and known["identity"] == file.identity and name in present:
            continue
        units.append(
            {
                "output": name,
                "path": file.path,
                "input": file.relative_path,
                "identity": file.identity,
                "num_bytes": file.num_bytes,
                "row_groups": list(file.row_groups),
                "partition": file.relative_path if file.partition else "",
            }
        )
    return units
