"""Processor time of a backbone's pass over one image, for several backbones by turns in one process, one thread.

    python tests/benchmarks/backbone_time.py --size 321 vgg16 timm/tf_efficientnet_lite0:16 timm/resnet18:16

A number behind a colon is the output stride. Weights are random; they do not change the time. The least of the passes
counts, and processor time, so that other work on the machine disturbs little.
"""

import argparse
import time

import torch

from ficklenet.backbones import build_backbone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbones", nargs="+", help="names, the first is what the others are compared with")
    parser.add_argument("--size", type=int, default=321, help="the nearest side that a backbone takes is used")
    parser.add_argument("--passes", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    networks, inputs = {}, {}
    for given in options.backbones:
        name, _, stride = given.partition(":")
        network = build_backbone(name, int(stride or 8))
        size = network.geometry.nearest_input_size(options.size)
        networks[given] = network.eval().to(memory_format=torch.channels_last)
        inputs[given] = torch.randn(1, 3, size, size).contiguous(memory_format=torch.channels_last)
    least = dict.fromkeys(networks, float("inf"))
    with torch.inference_mode():
        for _ in range(options.passes):
            for given, network in networks.items():
                started = time.process_time()
                network(inputs[given])
                least[given] = min(least[given], time.process_time() - started)
    reference = least[options.backbones[0]]
    for given, seconds in least.items():
        side = inputs[given].shape[-1]
        print(f"{given}: {side} x {side}, {seconds:.3f} s, {reference / seconds:.1f} times as fast")


if __name__ == "__main__":
    main()
