import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def _full_precision():
    """Accelerators would otherwise multiply fp32 matrices in fewer bits."""
    with jax.default_matmul_precision("float32"):
        yield
