"""ALiBi's slopes against transformers' BLOOM, MPT and Falcon."""

import numpy as np
import pytest

from lcx.positions import ALiBi
from tests.parity.against_torch import NEEDED

torch = pytest.importorskip("torch", reason=NEEDED)
transformers = pytest.importorskip("transformers", reason=NEEDED)


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 6, 8, 12, 20, 32, 40, 71, 112])
def test_slopes_of_bloom_mpt_and_falcon(heads):
    """Each of theirs is a bias of key s = 1 and of s = 0 whose difference is the slope."""
    models = transformers.models
    mask = torch.ones(1, 2)
    bloom = models.bloom.modeling_bloom.build_alibi_tensor(mask, heads, torch.float32)
    mpt = models.mpt.modeling_mpt.build_mpt_alibi_tensor(heads, 2)
    falcon = models.falcon.modeling_falcon.build_alibi_tensor(mask, heads, torch.float32)
    ours = np.array(ALiBi().slopes(heads))
    for bias, within in ((bloom, 1e-6), (mpt, 1e-6), (falcon, 2**-8)):  # Falcon's are bf16
        bias = bias.reshape(heads, 2).numpy()
        np.testing.assert_allclose(bias[:, 1] - bias[:, 0], ours, rtol=within)
    steep = models.mpt.modeling_mpt.build_mpt_alibi_tensor(heads, 2, alibi_bias_max=16)
    steep = steep.reshape(heads, 2).numpy()
    np.testing.assert_allclose(steep[:, 1] - steep[:, 0], ALiBi(16.0).slopes(heads), rtol=1e-6)
