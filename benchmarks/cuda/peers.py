#!/usr/bin/env python3
# Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
"""What PyTorch reaches on the shapes of attention_benchmark.cu and attend_benchmark.cu: the backends of
scaled_dot_product_attention on causal masks and few queries over a long cache, FlexAttention on block masks; forward
and backward. Prints milliseconds and TFLOP/s of visible pairs (4 and 10 d for each); needs torch and a CUDA device."""

import statistics

import torch
import torch._functorch.config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
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


BACKENDS = [("cuDNN", SDPBackend.CUDNN_ATTENTION), ("FlashAttn 2", SDPBackend.FLASH_ATTENTION)]
torch._functorch.config.donated_buffer = False  # a graph is walked backward more than once here
FLEX = torch.compile(flex_attention)


class Work:
    """One row of the tables: random q, k and v, and how many pairs their mask shows."""

    def __init__(self, name, queries, keys, heads, kv_heads, dim, pairs):
        self.name, self.heads, self.dim, self.pairs = name, heads, dim, pairs
        self.gqa = heads != kv_heads
        options = {"device": "cuda", "dtype": torch.bfloat16, "requires_grad": queries == keys}
        self.inputs = [torch.randn(1, n, tokens, dim, **options)
                       for n, tokens in [(heads, queries), (kv_heads, keys), (kv_heads, keys)]]

    def rate(self, time, flops_per_pair):
        return flops_per_pair * self.dim * self.heads * self.pairs / time * 1e-9

    def report(self, peer, attention):
        def run():
            return attention(*self.inputs, enable_gqa=self.gqa)

        row = f"| {self.name:22} | {self.dim:3} | {peer:13} |"
        try:
            time = milliseconds(run)  # as in training, where there is a backward
            row += f" {time:8.3f} | {self.rate(time, 4):7.1f} |"
            if self.inputs[0].requires_grad:
                o = run()
                d_o = torch.randn_like(o)
                time = milliseconds(lambda: torch.autograd.grad(o, self.inputs, d_o, retain_graph=True))
                row += f" {time:8.3f} | {self.rate(time, 10):7.1f} |"
        except RuntimeError as error:  # a backend that does not take this work says so
            row += f" {str(error).splitlines()[0][:60]} |"
        print(row, flush=True)

    def report_backends(self, **mask):
        for peer, backend in BACKENDS:
            with sdpa_kernel(backend):
                self.report(peer, lambda q, k, v, **options: scaled_dot_product_attention(q, k, v, **mask, **options))

    def report_flex(self, starts):
        mask = create_block_mask(lambda b, h, i, j: (j <= i) & (j >= starts[i]), None, None, len(starts), len(starts))
        self.report("FlexAttention", lambda q, k, v, **options: FLEX(q, k, v, block_mask=mask, **options))


def main():
    print(torch.__version__, torch.cuda.get_device_name())
    print(f"| {'':22} | {'d':>3} | {'':13} |  forward | TFLOP/s | backward | TFLOP/s |")
    for tokens, heads, kv_heads, dim, with_flex in [
            (8192, 32, 32, 128, True), (16384, 16, 16, 128, False), (N, 32, 8, 128, False), (8192, 64, 64, 64, True)]:
        work = Work(f"causal {tokens // 1024}K", tokens, tokens, heads, kv_heads, dim, tokens * (tokens + 1) // 2)
        work.report_backends(is_causal=True)
        if with_flex:
            work.report_flex(block_starts([tokens]))
    for name, lengths in [("63 blocks of 512 + 512", [512] * 64), ("ragged 40..1400 + 512", ragged(N, 40, 1400, 512)),
                          ("ragged 16..128 + 64", ragged(N, 16, 128, 64))]:
        starts = block_starts(lengths)
        pairs = int((torch.arange(N, device="cuda") + 1 - starts).sum())
        Work(name, N, N, 32, 8, 128, pairs).report_flex(starts)
    for queries in [512, 64, 1]:
        pairs = sum(N - queries + 1 + i for i in range(queries))
        mask = {"attn_mask": causal_lower_right(queries, N)} if queries > 1 else {}
        Work(f"{queries} over 32K keys", queries, N, 32, 8, 128, pairs).report_backends(**mask)


if __name__ == "__main__":
    main()
