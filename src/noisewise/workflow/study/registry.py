"""The studies there are."""

from __future__ import annotations

from noisewise.errors import SettingError
from noisewise.workflow.explain import did_you_mean
from noisewise.workflow.study import candidates, lengths, multistage, pruning, scores, tdc
from noisewise.workflow.study.definition import Study

_ALL = (*tdc.STUDIES, *lengths.STUDIES, *pruning.STUDIES, *candidates.STUDIES, *scores.STUDIES, *multistage.STUDIES)
STUDIES: dict[str, Study] = {study.name: study for study in _ALL}


def find_study(name: str) -> Study:
    """A study by its name."""
    if name not in STUDIES:
        hint = did_you_mean(name, [*STUDIES])
        raise SettingError(f"study {name}: no such study; there are {', '.join(STUDIES)}{hint}")
    return STUDIES[name]
