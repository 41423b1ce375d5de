"""Laws of the house itself: which way imports go, and what they bring in."""

import subprocess
import sys
from pathlib import Path

from importlinter.cli import lint_imports

from lcx.command.reference import reference

ROOT = Path(__file__).parents[1]


def test_imports_go_strictly_down(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT)  # undoes what the linter does to sys.path, too
    status = lint_imports(config_filename="pyproject.toml", no_cache=True, no_logo=True)
    assert status == 0, "pyproject.toml draws the floors under [tool.importlinter]"


def test_the_reference_is_current():
    text = (ROOT / "docs" / "reference.md").read_text("utf-8")
    assert text == reference(), "lcx list --markdown > docs/reference.md"


def test_models_import_without_the_packages_of_data_and_reports():
    heavy = ("grain", "tensorflow_datasets", "tokenizers", "matplotlib", "orbax", "scipy.stats")
    code = f"import lcx.model, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
