"""A LoRA adapter folder as numbers: its scale, and the refusal of every kind of adapter we cannot apply exactly.

W' = W + scale * B @ A, scale = alpha / r, or alpha / sqrt(r) under rsLoRA (arXiv 2312.03732). Anything that
makes an adapter more than that — DoRA, per-layer ranks, trained biases or embeddings — is refused by
name, because applying only its A and B would be silently wrong. No heavy imports: safetensors' header is read here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ledger import strict_json
from ledger.errors import InvalidInput, MissingCapability
from quantizer import safetensors_header

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAX_CONFIG_BYTES = 1 << 20
PREFIX = "base_model.model."

# Fields of peft's LoraConfig that change what an adapter means; each must be empty or false.
UNSUPPORTED = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "fan_in_fan_out",
    "lora_bias",
    "modules_to_save",
    "trainable_token_indices",
    "layer_replication",
    "target_parameters",
    "rank_pattern",
    "alpha_pattern",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
)
# Other initialisations (pissa, olora, corda, loftq, ...) rewrite the base weights themselves.
PLAIN_INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class Adapter:
    """One adapter: `shapes` maps a base tensor's name to (out, in); A is [r, in], B is [out, r]."""

    folder: Path
    rank: int
    alpha: float
    rslora: bool
    shapes: dict[str, tuple[int, int]]

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def weights(self) -> Path:
        return self.folder / WEIGHTS

    def names(self, tensor: str) -> tuple[str, str]:
        """The names of A and B, inside the adapter file, for one base tensor."""
        stem = PREFIX + tensor.removesuffix(".weight")
        return f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"


def read(folder: Path) -> Adapter:
    """Read and check an adapter folder. Raises InvalidInput or MissingCapability naming file and field."""
    path = folder / CONFIG
    config = _config(path)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, (int, float)) or alpha <= 0:
        raise InvalidInput(f"{path}: r and lora_alpha must be positive numbers, found {rank!r} and {alpha!r}")
    header = safetensors_header.read(folder / WEIGHTS)
    return Adapter(folder, rank, float(alpha), bool(config.get("use_rslora")), _shapes(header, rank))


def _config(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise InvalidInput(f"{path}: larger than {MAX_CONFIG_BYTES} bytes")
        config = strict_json.loads(path.read_bytes())
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}; this is not a peft adapter folder") from None
    except ValueError as error:
        raise InvalidInput(f"{path}: {error}") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise MissingCapability(f"{path}: peft_type must be LORA, other adapters are not supported")
    used = [field for field in UNSUPPORTED if config.get(field)]
    if config.get("bias", "none") != "none":
        used.append("bias")
    if config.get("init_lora_weights", True) not in PLAIN_INITIALISATIONS:
        used.append("init_lora_weights")
    if used:
        raise MissingCapability(
            f"{path}: {', '.join(f'{field}={config[field]!r}' for field in used)} cannot be applied exactly; "
            "train a plain LoRA adapter"
        )
    return config


def _shapes(header: safetensors_header.Header, rank: int) -> dict[str, tuple[int, int]]:
    """Base tensor -> (out, in); every tensor of the file must belong to such a pair."""
    shapes, used = {}, set()
    for name, tensor in header.tensors.items():
        if not name.startswith(PREFIX) or not name.endswith(".lora_A.weight"):
            continue
        other = name.removesuffix("lora_A.weight") + "lora_B.weight"
        a, b = tensor.shape, header.tensors[other].shape if other in header.tensors else ()
        if len(a) != 2 or len(b) != 2 or a[0] != rank or b[1] != rank:
            raise InvalidInput(f"{header.path}: {name} is {list(a)} and its B {list(b)}; r is {rank}")
        shapes[name.removeprefix(PREFIX).removesuffix(".lora_A.weight") + ".weight"] = (b[0], a[1])
        used |= {name, other}
    rest = sorted(set(header.tensors) - used)
    if rest:
        raise MissingCapability(
            f"{header.path}: {rest[0]!r} and {len(rest) - 1} more tensors are not part of a LoRA pair on a "
            "linear layer and cannot be applied; train without embeddings, biases and extra modules"
        )
    if not shapes:
        raise InvalidInput(f"{header.path}: holds no LoRA tensors")
    return shapes
