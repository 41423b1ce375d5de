"""Which cases wait for CI."""

from functools import partial

import pytest

rest = partial(pytest.param, marks=pytest.mark.rest)
"""A case for which another stands by default."""
