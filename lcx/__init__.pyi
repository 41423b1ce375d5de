"""The names of `import lcx`, and where each comes from."""

from lcx.adapters import (
    Adapter as Adapter,
)
from lcx.adapters import (
    BiasTuning as BiasTuning,
)
from lcx.adapters import (
    HeadTuning as HeadTuning,
)
from lcx.adapters import (
    InitialState as InitialState,
)
from lcx.adapters import (
    LoRA as LoRA,
)
from lcx.adapters import (
    PrefixTuning as PrefixTuning,
)
from lcx.adapters import (
    PromptTuning as PromptTuning,
)
from lcx.adapters import (
    PTuning as PTuning,
)
from lcx.block import (
    Block as Block,
)
from lcx.block import (
    ParallelBlock as ParallelBlock,
)
from lcx.block import (
    PostNormBlock as PostNormBlock,
)
from lcx.block import (
    SandwichBlock as SandwichBlock,
)
from lcx.data import (
    BPE as BPE,
)
from lcx.data import (
    MQAR as MQAR,
)
from lcx.data import (
    TFDS as TFDS,
)
from lcx.data import (
    Bytes as Bytes,
)
from lcx.data import (
    ChatML as ChatML,
)
from lcx.data import (
    Conversations as Conversations,
)
from lcx.data import (
    Data as Data,
)
from lcx.data import (
    Jinja as Jinja,
)
from lcx.data import (
    Llama2Chat as Llama2Chat,
)
from lcx.data import (
    Llama3Chat as Llama3Chat,
)
from lcx.data import (
    Pairs as Pairs,
)
from lcx.data import (
    Plain as Plain,
)
from lcx.data import (
    PythonCorpus as PythonCorpus,
)
from lcx.data import (
    TextFiles as TextFiles,
)
from lcx.data import (
    TokenizerFile as TokenizerFile,
)
from lcx.data import (
    Vicuna as Vicuna,
)
from lcx.decoding import (
    FrequencyPenalty as FrequencyPenalty,
)
from lcx.decoding import (
    Greedy as Greedy,
)
from lcx.decoding import (
    MinLength as MinLength,
)
from lcx.decoding import (
    MinP as MinP,
)
from lcx.decoding import (
    NoRepeatNGram as NoRepeatNGram,
)
from lcx.decoding import (
    PresencePenalty as PresencePenalty,
)
from lcx.decoding import (
    RepetitionPenalty as RepetitionPenalty,
)
from lcx.decoding import (
    Temperature as Temperature,
)
from lcx.decoding import (
    TopK as TopK,
)
from lcx.decoding import (
    TopP as TopP,
)
from lcx.decoding import (
    Typical as Typical,
)
from lcx.experiment import (
    Experiment as Experiment,
)
from lcx.experiment import (
    Experiments as Experiments,
)
from lcx.experiment import (
    Train as Train,
)
from lcx.huggingface import Pretrained as Pretrained
from lcx.layers import (
    MLP as MLP,
)
from lcx.layers import (
    GeGLU as GeGLU,
)
from lcx.layers import (
    LayerNorm as LayerNorm,
)
from lcx.layers import (
    RMSNorm as RMSNorm,
)
from lcx.layers import (
    RWKV6ChannelMix as RWKV6ChannelMix,
)
from lcx.layers import (
    RWKV7ChannelMix as RWKV7ChannelMix,
)
from lcx.layers import (
    RWKVChannelMix as RWKVChannelMix,
)
from lcx.layers import (
    SwiGLU as SwiGLU,
)
from lcx.layers import (
    ZeroCentredRMSNorm as ZeroCentredRMSNorm,
)
from lcx.losses import (
    DPO as DPO,
)
from lcx.losses import (
    Contrastive as Contrastive,
)
from lcx.losses import (
    CrossEntropy as CrossEntropy,
)
from lcx.losses import (
    Distillation as Distillation,
)
from lcx.losses import (
    SequenceUnlikelihood as SequenceUnlikelihood,
)
from lcx.losses import (
    Unlikelihood as Unlikelihood,
)
from lcx.mixers import (
    GLA as GLA,
)
from lcx.mixers import (
    RGLRU as RGLRU,
)
from lcx.mixers import (
    RWKV4 as RWKV4,
)
from lcx.mixers import (
    RWKV5 as RWKV5,
)
from lcx.mixers import (
    RWKV6 as RWKV6,
)
from lcx.mixers import (
    RWKV7 as RWKV7,
)
from lcx.mixers import (
    DeltaNet as DeltaNet,
)
from lcx.mixers import (
    GatedConv as GatedConv,
)
from lcx.mixers import (
    GatedDeltaNet as GatedDeltaNet,
)
from lcx.mixers import (
    Lightning as Lightning,
)
from lcx.mixers import (
    LinearAttention as LinearAttention,
)
from lcx.mixers import (
    Mamba2 as Mamba2,
)
from lcx.mixers import (
    RetNet as RetNet,
)
from lcx.mixers import (
    SoftmaxAttention as SoftmaxAttention,
)
from lcx.model import LM as LM
from lcx.opened import (
    OpenedRun as OpenedRun,
)
from lcx.opened import (
    open_run as open_run,
)
from lcx.optim import (
    AdamW as AdamW,
)
from lcx.optim import (
    Lion as Lion,
)
from lcx.optim import (
    Muon as Muon,
)
from lcx.parallel.mesh import Mesh as Mesh
from lcx.positions import (
    NTK as NTK,
)
from lcx.positions import (
    ALiBi as ALiBi,
)
from lcx.positions import (
    DynamicNTK as DynamicNTK,
)
from lcx.positions import (
    DynamicYaRN as DynamicYaRN,
)
from lcx.positions import (
    Learned as Learned,
)
from lcx.positions import (
    Llama3 as Llama3,
)
from lcx.positions import (
    LongRoPE as LongRoPE,
)
from lcx.positions import (
    NoPE as NoPE,
)
from lcx.positions import (
    PoSE as PoSE,
)
from lcx.positions import (
    PositionInterpolation as PositionInterpolation,
)
from lcx.positions import (
    Randomised as Randomised,
)
from lcx.positions import (
    RoPE as RoPE,
)
from lcx.positions import (
    XPos as XPos,
)
from lcx.positions import (
    YaRN as YaRN,
)
from lcx.protocols import (
    ByPosition as ByPosition,
)
from lcx.protocols import (
    Recall as Recall,
)
from lcx.protocols import (
    Repetition as Repetition,
)
from lcx.protocols import (
    SameTargets as SameTargets,
)
from lcx.protocols import (
    Sliding as Sliding,
)
from lcx.protocols import (
    TokenRepetition as TokenRepetition,
)
from lcx.sparsity import (
    Fixed as Fixed,
)
from lcx.sparsity import (
    Full as Full,
)
from lcx.sparsity import (
    SelfExtend as SelfExtend,
)
from lcx.sparsity import (
    ShiftedGroups as ShiftedGroups,
)
from lcx.sparsity import (
    Strided as Strided,
)
from lcx.sparsity import (
    TopBlocks as TopBlocks,
)
from lcx.sparsity import (
    Window as Window,
)
from lcx.types import (
    Batch as Batch,
)
from lcx.types import (
    Policy as Policy,
)

__version__: str
from lcx.decoding import BeamSearch as BeamSearch
from lcx.decoding import ContrastiveSearch as ContrastiveSearch
from lcx.decoding import Filters as Filters
from lcx.generate import Generator as Generator
from lcx.repetition import RepetitionGuard as RepetitionGuard
from lcx.repetition import Resample as Resample
from lcx.repetition import Separate as Separate
from lcx.repetition import StopThere as StopThere
