"""The size of a model from one number, its depth: width, heads, vocabulary, context, batch and learning rates follow.

The shape is that of nanochat (github.com/karpathy/nanochat): 64 dimensions of width for each layer, and learning rates
of AdamW that shrink with the square root of the width. Depth 2 has 0.95 million parameters, depth 12 has 135 million.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_WIDTH_PER_LAYER = 64
_HEAD_WIDTH = 64
_REFERENCE_WIDTH = 768
"""Width for which nanochat states its learning rates."""
_LARGEST_VOCABULARY, _LONGEST_CONTEXT, _LARGEST_BATCH = 2**15, 2**11, 2**18


def _power_of_two(value: float) -> int:
    return int(2 ** round(math.log2(value)))


@dataclass(frozen=True)
class Dial:
    """Everything that follows from the depth of a model.

    Attributes:
        depth: number of layers.
    """

    depth: int

    @property
    def width(self) -> int:
        """Dimensions of the residual stream."""
        return self.depth * _WIDTH_PER_LAYER

    @property
    def heads(self) -> int:
        """Attention heads."""
        return self.width // _HEAD_WIDTH

    @property
    def hidden(self) -> int:
        """Dimensions inside the gated MLP: 8/3 of the width, as in Llama, in steps of 64."""
        return math.ceil(self.width * 8 / 3 / 64) * 64

    @property
    def vocabulary(self) -> int:
        """Entries of the tokenizer: 2,048 at depth 2, nanochat's 32,768 from depth 7."""
        return max(512, min(_LARGEST_VOCABULARY, _power_of_two(512 * self.depth**2)))

    @property
    def context(self) -> int:
        """Tokens in a sequence: 256 at depth 2, 2,048 from depth 12."""
        return min(_LONGEST_CONTEXT, _power_of_two(128 * self.depth))

    @property
    def sequences(self) -> int:
        """Sequences in a batch: 4 at depth 2, where small batches learn more from the same tokens; 128 at depth 12."""
        return max(1, min(_LARGEST_BATCH, _power_of_two(128 * self.depth**3)) // self.context)

    @property
    def matrix_rate(self) -> float:
        """Learning rate of Muon, for the matrices of the layers."""
        return 0.02

    @property
    def layer_parameters(self) -> int:
        """Parameters outside the embeddings and the output layer: attention, MLP and norms."""
        return self.depth * (4 * self.width**2 + 3 * self.width * self.hidden + 2 * self.width) + self.width

    def parameters(self, vocabulary: int) -> int:
        """All parameters; embeddings and output layer are not tied."""
        return 2 * vocabulary * self.width + self.layer_parameters

    def derived(self) -> dict[str, int]:
        """The shape by name, for a report."""
        names = ("depth", "width", "heads", "hidden", "context", "sequences")
        return {name: getattr(self, name) for name in names}

    def adam_rate(self, at_reference: float) -> float:
        """A learning rate of AdamW for this width, from that for a width of 768."""
        return at_reference * math.sqrt(_REFERENCE_WIDTH / self.width)
