"""What a model can be made of, checked before it is made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any


def require_known(what: str, name: str, known: Collection[str]) -> None:
    """Raises ValueError for a name that is none of the known ones."""
    if name not in known:
        raise ValueError(f"{what} is {name!r}; there are {', '.join(sorted(known))}")


def check_fields(fields: Sequence[Mapping[str, Any]], likelihoods: Collection[str]) -> None:
    """Raises ValueError for fields of which a model cannot be made: two of one name, one without a name or size, an unknown likelihood."""
    for number, field in enumerate(fields):
        missing = [key for key in ("name", "likelihood", "valid_size") if key not in field]
        if missing:
            raise ValueError(f"field {number} ({field.get('name', 'without a name')}) lacks {', '.join(missing)}")
        require_known(f"the likelihood of field {field['name']!r}", field["likelihood"], likelihoods)
        if "." in field["name"]:
            raise ValueError(f"field {field['name']!r} has a dot in its name, which PyTorch's modules may not have")
    twice = [name for name, count in Counter(field["name"] for field in fields).items() if count > 1]
    if twice:
        raise ValueError(f"several fields are named {', '.join(map(repr, twice))}; a name stands for one field, modelled or a condition")
