"""Watches the operators of a step: which of them wait for the device, and how large their results are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Watch(TorchDispatchMode):
    """Names of operators that wait, and sizes of all dense results."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: set[str] = set()
        self.sizes: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func.overloadpacket).removeprefix("aten.")
        masks = name in ("index", "index_put", "index_put_") and any(
            one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1]
        )
        # What has to know a value, or how many values there are, waits for the device.
        counts = name in ("_local_scalar_dense", "nonzero", "bincount", "masked_select", "equal", "is_nonzero")
        unsized = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        if masks or counts or unsized or "unique" in name:
            self.waits.add(name)
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                self.sizes.add(tensor.numel())
        return out
