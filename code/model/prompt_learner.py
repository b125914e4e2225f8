"""The prompt learner: anomaly map -> soft prompts for the language model (AnomalyGPT section 3.3; specification 5)."""

import torch
from einops import rearrange
from torch import Tensor, nn

MAP_SIZE = 224  # the side that five halvings and the last 5x5 convolution turn into 3x3
CHANNELS = (1, 4, 16, 64, 256, 1024)
LAST_KERNEL = 5
PROMPTS_FROM_MAP = (MAP_SIZE // 2 ** (len(CHANNELS) - 1) - LAST_KERNEL + 1) ** 2


class PromptLearner(nn.Module):
    """Learned base prompts, then prompts that a small convolutional network computes from the map.

    Its convolutions are initialised as in He et al. (ICCV 2015): PyTorch's default attenuates the map by a factor of
    400, and the language model then needs hundreds of steps before it responds to the map at all.
    """

    def __init__(self, llm_width: int) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        for narrow, wide in zip(CHANNELS, CHANNELS[1:], strict=False):
            stages += [nn.Conv2d(narrow, wide, kernel_size=3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        self.meta_net = nn.Sequential(*stages, nn.Conv2d(CHANNELS[-1], llm_width, kernel_size=LAST_KERNEL))
        self.base_prompts = nn.Parameter(torch.randn(PROMPTS_FROM_MAP, llm_width) * 0.02)
        for module in self.meta_net:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, anomaly_map: Tensor) -> Tensor:
        """(B, 1, 224, 224) in 0..1 -> (B, 18, D_l): the base prompts first."""
        output = self.meta_net(anomaly_map.to(self.base_prompts.dtype))  # (B, D_l, 3, 3)
        from_map = rearrange(output, "b d h w -> b (h w) d")
        return torch.cat([self.base_prompts.expand(len(from_map), -1, -1), from_map], dim=1)
