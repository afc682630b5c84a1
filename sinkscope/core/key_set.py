"""A set of keys that some queries see: attention over several disjoint sets is merged through their log-sum-exp."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from sinkscope.core.attend import attend
from sinkscope.core.masks import Mask


class KeySet(NamedTuple):
    """Keys, and the queries as these keys see them.

    Attributes:
        query: [batch, head, query, dim].
        key, value: [batch, kv_head, key, dim].
        mask: which of the keys each query sees.
        bias: added to the logits of all of them.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Mask
    bias: float = 0.0

    def attended(self, scale: float, softcap: float | None) -> tuple[Tensor, Tensor]:
        """Attention of the queries over this set alone, and its log-sum-exp."""
        output, lse = attend(self.query, self.key, self.value, self.mask, scale=scale, softcap=softcap)
        return output, lse + self.bias if self.bias else lse
