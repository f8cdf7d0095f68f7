"""The GPU kernels of the trainings under Triton's interpreter, on a CPU: the results of plain torch, bit for bit.

Whether a GPU's compiler takes the kernels is tested too; that needs no GPU.
"""

import pytest

pytest.importorskip("triton", reason="the GPU kernels need Triton")


def test_masks_of_a_training_step_are_those_of_plain_torch_with_rows_of_zeros_behind_them(run_interpreted):
    run_interpreted("""
import torch
from ficklenet.gpu_kernels import kernels_for
from ficklenet.head import StochasticHead
from ficklenet.masks import TRAINING_STREAM, dropout_masks, mask_key
from ficklenet.training_masks import training_masks

cpu = torch.device("cpu")
assert kernels_for("triton_masks", cpu) and not kernels_for("triton_masks", "cuda")
keys = [2**64 - 5, mask_key(1, "b")]
for kernel_size, grid, drop_rate, epoch in [(9, (11, 13), 0.9, 3), (3, (2, 3), 0.0, 2**32 - 1), (1, (2, 3), 1.0, 0)]:
    settings = dict(kernel_size=kernel_size, grid=grid, drop_rate=drop_rate, device=cpu)
    masks = training_masks(keys, epoch, **settings)
    expected = dropout_masks(keys, [epoch], **settings, stream=TRAINING_STREAM)[:, 0]
    assert torch.equal(masks[:, : kernel_size**2], expected.byte()), (kernel_size, grid, drop_rate, epoch)
    assert masks.shape[1] % 8 == 0 and not masks[:, kernel_size**2 :].any()
    head = StochasticHead(4, 2, kernel_size)
    features = torch.rand(2, 4, *grid)
    torch.testing.assert_close(head(features, masks), head(features, expected))
""")


def test_cells_are_connected_as_in_plain_torch(run_interpreted):
    """Along a snake, in noise, and in every image for itself."""
    run_interpreted("""
import torch
from ficklenet import growing, triton_growing

torch.manual_seed(0)
snake = torch.zeros(7, 9, dtype=torch.int64)
snake[::2] = 1
snake[1::4, -1] = snake[3::4, 0] = 1
labels = torch.stack([snake, torch.randint(0, 2, (7, 9))])
sources = torch.rand(2, 7, 9) < 0.04
sources[0] = torch.arange(63).view(7, 9) == 0
found = triton_growing.connected(labels, sources)
assert torch.equal(found, growing.connected(labels, sources)) and torch.equal(found[0], snake == 1)

seeds, certain = torch.tensor([[[1, 255, 255, 0]]]), torch.tensor([[[[0.0, 0, 0, 0]], [[1.0, 1, 0, 1]]]])
grown = growing.grow_seeds(seeds, certain, torch.ones(1, 2, dtype=torch.bool))
assert grown.tolist() == [[[1, 1, 255, 0]]]
""")


def test_kernels_compile_for_a_gpu(tmp_path, monkeypatch):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from ficklenet import triton_growing, triton_masks

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    sizes = {"height": "i32", "width": "i32"}
    for kernel, types, constants in (
        (
            triton_masks.draw_masks,
            sizes | {"masks_BVP": "*u8", "keys_B": "*i64", "table": "*i32", "sample": "i32"},
            {"KERNEL_SIZE": 9, "PADDED": 88, "NUM_CALLS": 2, "TILE": 128},
        ),
        (triton_growing.spread, sizes | {"reached_BHW": "*i32", "labels_BHW": "*i64"}, {"BLOCK": 2048}),
    ):
        source = ASTSource(fn=kernel, signature=types | dict.fromkeys(constants, "constexpr"), constexprs=constants)
        assert compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
