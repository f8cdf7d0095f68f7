"""The GPU kernels of the trainings under Triton's interpreter, on a CPU: the results of plain torch, bit for bit.

The interpreter is chosen when the kernels are defined, so these tests run in a process of their own. Whether a GPU's
compiler takes the kernels is tested too; that needs no GPU.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ficklenet import head

pytest.importorskip("triton", reason="the GPU kernels need Triton")

SCRIPT = """
import torch
from ficklenet.gpu_kernels import kernels_for
from ficklenet.head import StochasticHead
from ficklenet.masks import TRAINING_STREAM, dropout_masks, mask_key
from ficklenet.training_masks import training_masks

torch.manual_seed(0)
cpu = torch.device("cpu")
assert kernels_for("triton_masks", cpu) and not kernels_for("triton_masks", "cuda")
keys = [mask_key(0, "a"), 2**64 - 5, mask_key(1, "b")]

# 1. The masks are those of plain torch, with rows of zeros behind them
for kernel_size, grid, drop_rate, epoch in [(9, (12, 13), 0.9, 3), (3, (7, 9), 0.0, 2**32 - 1), (1, (2, 3), 1.0, 0)]:
    settings = dict(kernel_size=kernel_size, grid=grid, drop_rate=drop_rate, device=cpu)
    masks = training_masks(keys, epoch, **settings)
    expected = dropout_masks(keys, [epoch], **settings, stream=TRAINING_STREAM)[:, 0]
    assert torch.equal(masks[:, : kernel_size**2], expected.byte()), (kernel_size, grid, drop_rate, epoch)
    assert masks.shape[1] % 8 == 0 and not masks[:, kernel_size**2 :].any()

# 2. The head's logits and gradients do not depend on the padding
head, features = StochasticHead(4, 2, 3).double(), torch.randn(3, 4, 7, 9, dtype=torch.float64)
settings = dict(kernel_size=3, grid=(7, 9), drop_rate=0.5, device=cpu)
results = []
for masks in (training_masks(keys, 1, **settings), dropout_masks(keys, [1], **settings, stream=TRAINING_STREAM)[:, 0]):
    leaves = [features.detach().requires_grad_(), *head.parameters()]
    logits = head(leaves[0], masks)
    results.append([logits, *torch.autograd.grad(logits.square().sum(), leaves)])
for one, other in zip(*results, strict=True):
    torch.testing.assert_close(one, other, atol=1e-12, rtol=0)
"""


def test_kernels_give_the_results_of_plain_torch():
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    root = Path(head.__file__).parents[1]
    subprocess.run([sys.executable, "-c", SCRIPT], check=True, timeout=240, cwd=root, env=environment)


def test_kernels_compile_for_a_gpu(tmp_path, monkeypatch):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from ficklenet import triton_masks

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    sizes = {"sample": "i64", "height": "i32", "width": "i32"}
    for kernel, types, constants in (
        (
            triton_masks.draw_masks,
            sizes | {"masks_BVP": "*u8", "keys_B": "*i64", "table": "*i32"},
            {"KERNEL_SIZE": 9, "PADDED": 88, "NUM_CALLS": 2, "TILE": 128},
        ),
    ):
        source = ASTSource(fn=kernel, signature=types | dict.fromkeys(constants, "constexpr"), constexprs=constants)
        assert compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
