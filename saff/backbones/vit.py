"""Vision transformers: DINO, DINOv2 and whatever shares their layout.

The shape of the network is read from its weights, so one loader serves every size.

References
----------
Dosovitskiy et al., An image is worth 16x16 words, ICLR 2021; Caron et al., Emerging properties in
self-supervised vision transformers, ICCV 2021; Oquab et al., DINOv2, TMLR 2024.
"""

import math
import re
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate, layer_norm, linear, scaled_dot_product_attention

from saff.errors import WeightsError

HEAD_WIDTH = 64  # features of an attention head, in every published model of these families
NORM_EPSILON = 1e-6
LARGEST_PATCH = 64  # pixels
NUMBERED = re.compile(r"blocks\.(\d{1,3})\.")
LEVELS = 4  # last blocks whose features are given
BLOCK = (
    *(f"{layer}.{kind}" for layer in ("norm1", "norm2") for kind in ("weight", "bias")),
    *(f"attn.{layer}.{kind}" for layer in ("qkv", "proj") for kind in ("weight", "bias")),
    *(f"mlp.{layer}.{kind}" for layer in ("fc1", "fc2") for kind in ("weight", "bias")),
)
STEM = ("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")


class Tokens(NamedTuple):
    """What a transformer says of an image.

    Attributes
    ----------
    levels : list of float32 tensors of shape (D, h, w)
        Normalised features of the patches after each of the last blocks.
    attention : float32 tensor of shape (h, w)
        How much the image's own token attends to each patch in the last block, mean over heads.
    """

    levels: list[Tensor]
    attention: Tensor


class VisionTransformer(nn.Module):
    """The transformer that a state dict describes.

    Parameters
    ----------
    state : dict of str to Tensor
        Names as in DINO and DINOv2.
    source : str
        Where it comes from, for messages.

    Raises
    ------
    WeightsError
        If an entry is missing or its shape does not fit.
    """

    def __init__(self, state: dict[str, Tensor], source: str) -> None:
        super().__init__()
        numbers = {found[1] for name in state if (found := NUMBERED.match(name))}
        self.depth = len(numbers)  # a gap shows as a missing entry
        wanted = [*STEM, "norm.weight", "norm.bias"]
        wanted += [f"blocks.{index}.{name}" for index in range(self.depth) for name in BLOCK]
        missing = [name for name in wanted if name not in state]
        if missing or not self.depth:
            raise WeightsError(
                f"{source} is no vision transformer as DINO writes them: it has no "
                f"{', '.join(missing[:3]) or 'blocks'}"
            )
        self.state = {name: value.detach().float() for name, value in state.items()}
        if not all(torch.isfinite(value).all() for value in self.state.values()):
            raise WeightsError(f"{source} holds NaN or infinity")
        try:
            self.width, _, self.patch, _ = self.state["patch_embed.proj.weight"].shape
            self.heads = self.width // HEAD_WIDTH
            if self.patch > LARGEST_PATCH:
                raise ValueError(f"patches of {self.patch} pixels")
            with torch.inference_mode():
                self(torch.zeros(1, 3, self.patch, 2 * self.patch))
        except (IndexError, RuntimeError, ValueError, ZeroDivisionError) as error:
            reason = str(error).splitlines()[0][:200]
            raise WeightsError(f"the shapes in {source} fit no transformer: {reason}") from error

    def forward(self, x: Tensor) -> Tokens:
        """Float (1, 3, H, W), sides multiples of the patch, to features and attention."""
        s = self.state
        patches = nn.functional.conv2d(
            x, s["patch_embed.proj.weight"], s["patch_embed.proj.bias"], stride=self.patch
        )
        h, w = patches.shape[2:]
        tokens = torch.cat([s["cls_token"], patches.flatten(2).transpose(1, 2)], dim=1)
        tokens = tokens + self._positions(h, w)
        extra = s.get("register_tokens")
        first = 1
        if extra is not None:  # registers stand between the image's token and the patches
            tokens = torch.cat([tokens[:, :1], extra, tokens[:, 1:]], dim=1)
            first += extra.shape[1]
        levels, attention = [], tokens.new_zeros(h * w)
        for index in range(self.depth):
            if index == self.depth - 1:
                attention = self._attention(tokens, index)[first:]
            tokens = self._block(tokens, index)
            if index >= self.depth - LEVELS:
                normed = self._norm(tokens, "norm")[0, first:]
                levels.append(normed.T.reshape(self.width, h, w))
        return Tokens(levels, attention.reshape(h, w))

    def _positions(self, h: int, w: int) -> Tensor:
        """Position embedding for a grid of h x w patches: (1, 1 + h w, D)."""
        known = self.state["pos_embed"]
        side = math.isqrt(known.shape[1] - 1)
        if side * side != known.shape[1] - 1:
            raise ValueError(f"{known.shape[1] - 1} positions are no square grid")
        if (side, side) == (h, w):
            return known
        grid = known[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        grid = interpolate(grid, size=(h, w), mode="bicubic", align_corners=False)
        return torch.cat([known[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return layer_norm(x, (self.width,), weight, bias, NORM_EPSILON)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def _split(self, x: Tensor, index: int) -> Tensor:
        """Queries, keys and values: (1, N, D) to (3, 1, heads, N, D / heads)."""
        qkv = self._linear(self._norm(x, f"blocks.{index}.norm1"), f"blocks.{index}.attn.qkv")
        return qkv.reshape(1, -1, 3, self.heads, self.width // self.heads).permute(2, 0, 3, 1, 4)

    def _attention(self, x: Tensor, index: int) -> Tensor:
        """How much the first token attends to each: (1, N, D) to (N,), mean over heads."""
        queries, keys, _ = self._split(x, index)
        products = queries[0, :, :1] @ keys[0].transpose(1, 2) / math.sqrt(queries.shape[-1])
        shares: Tensor = products.softmax(dim=-1).mean(dim=(0, 1))
        return shares

    def _block(self, x: Tensor, index: int) -> Tensor:
        name = f"blocks.{index}"
        one = self.state.get(f"{name}.ls1.gamma", 1.0)  # DINOv2 scales what a block adds
        two = self.state.get(f"{name}.ls2.gamma", 1.0)
        mixed = scaled_dot_product_attention(*self._split(x, index)).transpose(1, 2)
        x = x + one * self._linear(mixed.reshape(1, -1, self.width), f"{name}.attn.proj")
        hidden = gelu(self._linear(self._norm(x, f"{name}.norm2"), f"{name}.mlp.fc1"))
        return x + two * self._linear(hidden, f"{name}.mlp.fc2")
