"""The Toeplitz neural network, to train from scratch (Qin et al., 2023, section 3): GTU, GLU and their block."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from remixer.mixers.errors import MixerConfigError
from remixer.mixers.position_encoder import simple_rms_norm
from remixer.mixers.precision import at_least_float32
from remixer.mixers.spec import AttentionSpec
from remixer.mixers.toeplitz import Toeplitz, ToeplitzMixer


class SimpleRMSNorm(nn.Module):
    """X / (|x| / sqrt(C) + 1e-8): an RMSNorm that has nothing to learn, in float32 at least."""

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        return simple_rms_norm(hidden.to(at_least_float32(hidden.dtype))).to(hidden.dtype)


class GatedToeplitzUnit(nn.Module):
    """W_o (silu(U x) * T silu(V x)): the token mixer of TNN (Qin et al., 2023, section 3).

    T is one Toeplitz matrix per head and channel, T_ij = decay^|i-j| RPE(i - j), with whole offsets of any size;
    neither its coefficients nor its rows are normalised, and offset 0 is not decayed. Any length will do, also
    one that no training sequence had. The unit knows the order of tokens by itself: models add no positions.

    Args:
        width: C.
        expand_ratio: U and V map to expand_ratio * width channels, rounded down to a multiple of `heads`.
        heads: how many groups the channels form. Every channel has its own T whatever their number.
        causal: token t sees tokens 0..t only.
        decay: lambda in lambda^|i-j|, or None for no decay.
        rpe_width: hidden size of the relative position encoder; None is width / 8, and 32 at least.
        rpe_layers: number of its hidden layers.

    Raises:
        MixerConfigError: an option has a value that no unit could take.

    Examples:
        >>> import torch
        >>> unit = GatedToeplitzUnit(64, causal=True)
        >>> unit(torch.zeros(2, 100, 64)).shape
        torch.Size([2, 100, 64])
    """

    def __init__(
        self,
        width: int,
        *,
        expand_ratio: float = 3.0,
        heads: int = 1,
        causal: bool = False,
        decay: float | None = 0.99,
        rpe_width: int | None = None,
        rpe_layers: int = 1,
    ) -> None:
        super().__init__()
        head_dim = int(expand_ratio * width) // heads if heads >= 1 else 0
        if head_dim < 1:
            raise MixerConfigError(f"no channel is left to {heads} heads of {expand_ratio:g} times {width} channels")
        # Of an attention's spec only heads, value size and direction mean something to a Toeplitz matrix.
        spec = AttentionSpec(
            heads=heads, kv_heads=heads, head_dim=head_dim, value_dim=head_dim, scale=1.0, causal=causal, padding=True
        )
        rpe_width = max(width // 8, 32) if rpe_width is None else rpe_width
        config = Toeplitz(decay=decay, rpe_width=rpe_width, rpe_layers=rpe_layers, normalise=False)
        self.gate = nn.Linear(width, heads * head_dim)
        self.value = nn.Linear(width, heads * head_dim)
        self.mixer = ToeplitzMixer(spec, config)
        self.out = nn.Linear(heads * head_dim, width)

    def forward(self, hidden: Tensor, padding: Tensor | None = None) -> Tensor:
        """Mix the tokens.

        Args:
            hidden: (B, T, C).
            padding: (B, T) bool, True where a token exists, or None where all do. What doesn't exist has no
                influence on what does; its own outputs mean nothing.

        Returns:
            (B, T, C).
        """
        return self._gated(self.mixer(value=self._values(hidden), padding=padding), hidden)

    def reference(self, hidden: Tensor, padding: Tensor | None = None) -> Tensor:
        """`forward` by dense matrices T: the same arguments, values and gradients."""
        return self._gated(self.mixer.reference(value=self._values(hidden), padding=padding), hidden)

    def _values(self, hidden: Tensor) -> Tensor:
        """(B, T, C) to (B, H, T, E)."""
        return F.silu(self.value(hidden)).unflatten(-1, (self.mixer.spec.heads, -1)).transpose(1, 2)

    def _gated(self, mixed: Tensor, hidden: Tensor) -> Tensor:
        """(B, H, T, E) and (B, T, C) to (B, T, C)."""
        return self.out(F.silu(self.gate(hidden)) * mixed.transpose(1, 2).flatten(2))


class GatedLinearUnit(nn.Module):
    """W_3 (silu(W_1 x) * W_2 x): the channel mixer of TNN (Shazeer, 2020; Qin et al., 2023, section 3).

    Args:
        width: C.
        hidden: channels between the maps; None is as many as outside.
    """

    def __init__(self, width: int, hidden: int | None = None) -> None:
        super().__init__()
        inner = width if hidden is None else hidden
        self.gate = nn.Linear(width, inner)
        self.value = nn.Linear(width, inner)
        self.out = nn.Linear(inner, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        return self.out(F.silu(self.gate(hidden)) * self.value(hidden))


class ToeplitzBlock(nn.Module):
    """One layer of TNN: x + GTU(norm x), then x + GLU(norm x), the norm being a SimpleRMSNorm.

    With the defaults it has about as many parameters as a Transformer's layer: 12 C^2.

    Args:
        width: C.
        prenorm: norm what the units read, as published; else what they give: x + norm(GTU x).
        glu_width: channels inside the GLU; None is as many as outside.
        expand_ratio: see GatedToeplitzUnit, also for what follows.
        heads: of the GTU.
        causal: token t sees tokens 0..t only.
        decay: of the GTU.
        rpe_width: of the GTU.
        rpe_layers: of the GTU.

    Raises:
        MixerConfigError: an option has a value that no unit could take.

    Examples:
        >>> import torch
        >>> block = ToeplitzBlock(64, causal=True)
        >>> block(torch.zeros(2, 100, 64), torch.ones(2, 100, dtype=torch.bool)).shape
        torch.Size([2, 100, 64])
    """

    def __init__(
        self,
        width: int,
        *,
        prenorm: bool = True,
        glu_width: int | None = None,
        expand_ratio: float = 3.0,
        heads: int = 1,
        causal: bool = False,
        decay: float | None = 0.99,
        rpe_width: int | None = None,
        rpe_layers: int = 1,
    ) -> None:
        super().__init__()
        self.prenorm = prenorm
        self.norm = SimpleRMSNorm()
        self.gtu = GatedToeplitzUnit(
            width,
            expand_ratio=expand_ratio,
            heads=heads,
            causal=causal,
            decay=decay,
            rpe_width=rpe_width,
            rpe_layers=rpe_layers,
        )
        self.glu = GatedLinearUnit(width, glu_width)

    def forward(self, hidden: Tensor, padding: Tensor | None = None) -> Tensor:
        """One layer.

        Args:
            hidden: (B, T, C).
            padding: (B, T) bool, True where a token exists, or None where all do.

        Returns:
            (B, T, C).
        """
        if self.prenorm:
            hidden = hidden + self.gtu(self.norm(hidden), padding)
            return hidden + self.glu(self.norm(hidden))
        hidden = hidden + self.norm(self.gtu(hidden, padding))
        return hidden + self.norm(self.glu(hidden))
