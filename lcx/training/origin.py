"""What a run was made of, beside its experiment: when it may be reused, and when it is another."""

import json
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Origin:
    """Kept in a run's folder as origin.json."""

    title: str = ""
    """The experiment file's name, without `.py`; its text is kept in `source/`."""
    folder: str = ""
    """Where that file lay."""
    place: int = 0
    """The variant's place in the file."""
    changes: tuple[str, ...] = ()
    """The assignments that changed the variant (`--set`)."""
    data: str = ""
    """The fingerprint of the texts, their splits and tokens that it is trained on."""
    code: dict[str, str] = field(default_factory=dict)
    """A digest of each class of one's own that the experiment is made of."""
    began_from: str | None = None
    """The fingerprint of the parameters it began from; None: fresh ones, or not known yet."""
    taught_by: str | None = None
    """The fingerprint of its teacher, model and parameters; None: it has none, or not known yet."""
    weights: str | None = None
    """The fingerprint of its parameters after the last step; None: not finished."""

    def differences(self, there: "Origin | None") -> list[str]:
        """What of this, which is asked, is otherwise in a run that is there: a line each."""
        if there is None:
            return ["nothing says what it was made of (no origin.json)"]
        lines = []
        if self.data != there.data:
            lines.append("the texts, their splits or their tokens have changed since its training")
        lines += [
            f"the code of {name} has changed since its training"
            for name in sorted(self.code.keys() | there.code.keys())
            if self.code.get(name) != there.code.get(name)
        ]
        for what, here, then in (
            ("what it began from", self.began_from, there.began_from),
            ("its teacher", self.taught_by, there.taught_by),
        ):
            if None not in (here, then) and here != then:
                lines.append(f"{what} has been trained anew, or has changed, since")
        return lines


def read_origin(folder: Path) -> Origin | None:
    """The origin of the run in a folder; None where there is none."""
    path = folder / "origin.json"
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    return Origin(**found | {"changes": tuple(found["changes"])})
