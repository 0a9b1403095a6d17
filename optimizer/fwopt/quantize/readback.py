"""Is what lies on disk what was measured? Every matrix read back must be the evaluation's, to the bit."""

from __future__ import annotations

from pathlib import Path

from fwopt.errors import InputError
from fwopt.quality.schemes import Scheme
from fwopt.quantize.write import Tell


def check(source: Path, scheme: Scheme, written: Path, tell: Tell) -> int:
    """Number of matrices that were compared; a difference is an error that names the matrix."""
    import torch

    from fwopt.quality.arms import matrices, rounded_matrices
    from fwopt.quality.model import StreamedModel
    from fwopt.quality.stored import StoredConfig, StoredShards

    reference = StreamedModel(source, torch.float32)
    config = StoredConfig.read(written)
    shards = StoredShards(written, config)
    stored = StreamedModel(written, torch.float32, shards)
    compared = 0
    for index in range(reference.layers):
        tell("reading back", index, reference.layers)
        with reference.layer(index) as layer, stored.layer(index) as other:
            expected = rounded_matrices(scheme, index, layer, reference.stored_dtype())
            for (name, plain), (_, found) in zip(matrices(layer), matrices(other), strict=True):
                value, activations = expected.get(name, (plain, None))
                if not torch.equal(found, value):
                    raise InputError(f"{written}: layer {index}, {name} reads back otherwise than it was measured")
                module = f"{stored.prefix}.{index}.{name}"
                if module in shards.quantized and config.activations(module) != activations:
                    raise InputError(f"{written}: layer {index}, {name}: config.json rounds activations otherwise")
                compared += name in expected
    return compared
