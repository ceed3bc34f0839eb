#!/usr/bin/env python3
# Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
"""What PyTorch reaches on the shapes of attention_benchmark.cu: the backends of scaled_dot_product_attention on the causal
ones, FlexAttention on all. Prints TFLOP/s of visible pairs; needs torch and a CUDA device."""

import statistics

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

N = 32768


def ragged(total, low, high, final_block):
    """Lengths in [low, high], drawn as std::mt19937(7) % range draws them."""
    state = [7]
    for i in range(1, 624):
        state.append((1812433253 * (state[-1] ^ (state[-1] >> 30)) + i) & 0xFFFFFFFF)

    def words():
        nonlocal state
        while True:
            for i in range(624):
                y = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7FFFFFFF)
                state[i] = state[(i + 397) % 624] ^ (y >> 1) ^ (0x9908B0DF if y & 1 else 0)
            for y in state:
                y ^= y >> 11
                y ^= (y << 7) & 0x9D2C5680
                y ^= (y << 15) & 0xEFC60000
                yield y ^ (y >> 18)

    lengths, left, source = [], total - final_block, words()
    while left > 0:
        lengths.append(min(left, low + next(source) % (high - low + 1)))
        left -= lengths[-1]
    return lengths + [final_block]


def milliseconds(run):
    for _ in range(3):
        run()
    times = []
    for _ in range(15):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def block_starts(lengths):
    """(tokens) the first token of each token's block, 0 for the final block, which sees all."""
    starts, at = [], 0
    for length in lengths:
        starts += [at] * length
        at += length
    starts[at - lengths[-1]:] = [0] * lengths[-1]
    return torch.tensor(starts, device="cuda")


def main():
    print(torch.__version__, torch.cuda.get_device_name())
    compiled = torch.compile(flex_attention)
    works = [
        ("causal 8K", 8192, 32, 32, 128, None),
        ("causal 8K", 8192, 64, 64, 64, None),
        ("63 blocks of 512 + 512", N, 32, 8, 128, [512] * 64),
        ("ragged 40..1400 + 512", N, 32, 8, 128, ragged(N, 40, 1400, 512)),
        ("ragged 16..128 + 64", N, 32, 8, 128, ragged(N, 16, 128, 64)),
    ]
    for name, tokens, heads, kv_heads, dim, lengths in works:
        q = torch.randn(1, heads, tokens, dim, device="cuda", dtype=torch.bfloat16)
        k = torch.randn(1, kv_heads, tokens, dim, device="cuda", dtype=torch.bfloat16)
        v = torch.randn_like(k)
        lengths = lengths or [tokens]
        starts = block_starts(lengths)
        tokens_of = torch.arange(tokens, device="cuda")
        pairs = int((tokens_of + 1 - starts).sum())

        def report(peer, run):
            time = milliseconds(run)
            print(f"| {name:22} | {dim:3} | {peer:13} | {time:8.3f} | "
                  f"{4 * dim * heads * pairs / time * 1e-9:7.1f} |", flush=True)

        if len(lengths) == 1:
            for peer, backend in [("cuDNN", SDPBackend.CUDNN_ATTENTION), ("FlashAttn 2", SDPBackend.FLASH_ATTENTION)]:
                with sdpa_kernel(backend):
                    report(peer, lambda: scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != kv_heads))
        mask = create_block_mask(lambda b, h, i, j: (j <= i) & (j >= starts[i]), None, None, tokens, tokens)
        report("FlexAttention", lambda: compiled(q, k, v, block_mask=mask, enable_gqa=heads != kv_heads))


if __name__ == "__main__":
    with torch.no_grad():
        main()
