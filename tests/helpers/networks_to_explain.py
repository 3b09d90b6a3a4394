"""Small networks of every kind that is to be explained, with inputs for them. Random weights, nothing downloaded."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from napari_gsvolume.settings import validated
from napari_gsvolume.super_resolution.schemes import build_scheme
from napari_gsvolume.super_resolution.settings import TrainSRSettings


@dataclass
class Network:
    model: nn.Module
    inputs: Any
    """A list of batches."""
    layer: str
    features: int
    """Of that layer."""
    samples: int
    """Of that layer, in all batches."""
    by: str | None = None
    """What to differentiate by where inputs are integers."""
    attention: int = 0
    """Heads."""
    more: dict[str, Any] = field(default_factory=dict)


class Block(nn.Module):
    """A block of a vision transformer, pre-norm, whose attention is written out or PyTorch's function."""

    def __init__(self, width: int, heads: int, written_out: bool) -> None:
        super().__init__()
        self.heads, self.written_out = heads, written_out
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        q, k, v = self.qkv(self.before(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.written_out:
            attended = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1) @ v
        else:
            attended = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.after(x))


class ViT(nn.Module):
    """A vision transformer with a class token."""

    def __init__(self, written_out: bool = False) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 16, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.places = nn.Parameter(torch.randn(1, 17, 16))
        self.blocks = nn.Sequential(Block(16, 2, written_out), Block(16, 2, written_out))
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.places
        return self.head(self.blocks(tokens)[:, 0])


class MessagePassing(nn.Module):
    """Two rounds of mean messages on a graph (N, F), adjacency (N, N)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(10, 12), nn.Linear(24, 4)

    def forward(self, x, adjacency):
        mean = adjacency / adjacency.sum(1, keepdim=True).clamp_min(1)
        h = torch.relu(self.first(torch.cat([x, mean @ x], 1)))
        return self.second(torch.cat([h, mean @ h], 1))


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cnn() -> Network:
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 9, 3, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(9 * 8 * 8, 5),
    )
    return Network(model, [noise(3, 1, 16, 16), noise(2, 1, 16, 16, seed=1)], "3", 9, 5 * 64)


def vit(written_out=False) -> Network:
    inputs = [noise(3, 1, 16, 16), noise(2, 1, 16, 16, seed=1)]
    return Network(ViT(written_out), inputs, "blocks.1.mlp.0", 32, 5 * 17, attention=4)


def torch_transformer() -> Network:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return Network(model, [noise(2, 7, 16)], "layers.1.linear1", 32, 14, attention=8)


def unet() -> Network:
    from monai.networks.nets import UNet

    model = UNet(3, 1, 2, channels=(4, 8, 16), strides=(2, 2), num_res_units=1)
    return Network(model, [noise(2, 1, 8, 8, 8)], "model.1.submodule.0.conv.unit0.conv", 8, 2 * 2**3)


def language_model(**config) -> Network:
    from transformers import GPT2Config, GPT2LMHeadModel

    settings = {
        "n_layer": 2,
        "n_head": 4,
        "n_embd": 32,
        "vocab_size": 60,
        "n_positions": 20,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    model = GPT2LMHeadModel(GPT2Config(**settings | config))
    ids = torch.randint(0, 60, (3, 9), generator=torch.Generator().manual_seed(0))
    return Network(model, [{"input_ids": ids}], "transformer.h.1.mlp.c_fc", 128, 27, "transformer.wte", 8)


def autoencoder() -> Network:
    model = nn.Sequential(
        nn.Linear(20, 12), nn.Tanh(), nn.Linear(12, 4), nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 20)
    )
    return Network(model, [noise(40, 20), noise(13, 20, seed=1)], "2", 4, 53)


def message_passing() -> Network:
    graphs = []
    for n in (11, 8):
        adjacency = (noise(n, n, seed=n).abs() > 1).float()
        graphs.append((noise(n, 5, seed=n), adjacency))
    return Network(MessagePassing(), graphs, "first", 12, 19)


def super_resolution(**more) -> Network:
    s = validated(TrainSRSettings, channels=8, blocks=1, **more)
    model = build_scheme(s)
    with torch.no_grad():
        for number, p in enumerate(model.parameters()):
            p.add_(0.1 * noise(*p.shape, seed=number))
    return Network(model, [noise(2, s.depth, 9, 11)], "network.head", 8, 2 * 99)


MAKE = {
    make.__name__: make
    for make in (
        cnn,
        vit,
        torch_transformer,
        unet,
        language_model,
        autoencoder,
        message_passing,
        super_resolution,
    )
}


def network(name: str) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MAKE[name]()
