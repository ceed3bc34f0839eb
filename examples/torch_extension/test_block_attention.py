#!/usr/bin/env python3
# Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
"""Tests block_attention against PyTorch's attention over the dense mask, on the CPU and on a GPU if there is one."""

import gc
import unittest

import torch
from torch.nn.functional import mse_loss, scaled_dot_product_attention

from block_attention import BlockMask, block_attention

RAGGED = [7, 1, 12, 0, 5]
MASKS = {
    "causal": lambda: BlockMask.causal(19),
    "blocks": lambda: BlockMask.blocks(RAGGED),
    "two sequences": lambda: BlockMask.blocks([[5, 3], [4, 9, 2]]),
    "sinks seen by all": lambda: BlockMask.blocks(RAGGED, sink_tokens=2, sink_visibility="all"),
    "sinks of their own": lambda: BlockMask.blocks(RAGGED, sink_tokens=1, sink_visibility="own"),
    "dropout": lambda: BlockMask.dropout(RAGGED, keep_probability=0.5, seed=3),
    "dropout, sinks": lambda: BlockMask.dropout(
        RAGGED, keep_probability=0.5, seed=4, rule="global_blocks", sink_tokens=1),
}
OPTIONS = {
    "plain": {},
    "lse": {"return_lse": True},
    "softcap": {"scale": 0.7, "softcap": 1.5},
    "sinks": {"sink_logits": True, "return_lse": True},
    "all": {"scale": -0.4, "softcap": 2.0, "sink_logits": True, "return_lse": True},
}


def random_inputs(mask, query_heads=4, kv_heads=2, head_dim=8, value_dim=None, **options):
    """q, k, v, that need gradients."""
    torch.manual_seed(1)
    shapes = [(query_heads, head_dim), (kv_heads, head_dim), (kv_heads, value_dim or head_dim)]
    return [torch.randn(mask.tokens, *shape, requires_grad=True, **options) for shape in shapes]


def head_major(tensor, heads):
    """(tokens, kv_heads, dim) -> (heads, tokens, dim), each kv head repeated."""
    return tensor.repeat_interleave(heads // tensor.shape[1], dim=1).transpose(0, 1)


def sdpa(q, k, v, visible):
    k, v = head_major(k, q.shape[1]), head_major(v, q.shape[1])
    return scaled_dot_product_attention(q.transpose(0, 1), k, v, attn_mask=visible).transpose(0, 1)


def dense_attention(q, k, v, visible, scale=None, softcap=0.0, sink_logits=None):
    """(o, lse) as the documentation of block_attention defines them. Every row sees something."""
    heads = q.shape[1]
    scores = q.transpose(0, 1) @ head_major(k, heads).mT * (scale or q.shape[-1]**-0.5)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~visible, -torch.inf)
    denominator = scores
    if sink_logits is not None:
        sinks = sink_logits[:, None, None].expand(heads, len(scores[0]), 1)
        denominator = torch.cat([scores, sinks], dim=-1)
    lse = denominator.logsumexp(dim=-1)
    o = torch.exp(scores - lse[..., None]) @ head_major(v, heads)
    return o.transpose(0, 1), lse.T


def error_bounds(q, k, v, visible, d_o, gradients, roundoff):
    """Bounds on each error of o, d_q, d_k and d_v, all float64, for kernels that round softmax weights, o, gradients of
    scores and results to a type with this unit roundoff u, and sum in float32. First order in u, times 1.5."""
    heads, group = q.shape[1], q.shape[1] // k.shape[1]
    q, k, v, d_o = q.transpose(0, 1), head_major(k, heads), head_major(v, heads), d_o.transpose(0, 1)
    scale = q.shape[-1]**-0.5
    weights = (q @ k.mT * scale).masked_fill(~visible, -torch.inf).softmax(dim=-1)
    o_error = 3 * (weights @ v.abs())  # weights, their sum, the result
    delta = (d_o * (weights @ v)).sum(-1, keepdim=True)
    delta_error = (d_o.abs() * o_error).sum(-1, keepdim=True)  # delta = d_o . o is computed from rounded o
    score_error = (weights * (d_o @ v.mT - delta)).abs() + weights * delta_error
    d_q, d_k, d_v = gradients

    def sum_of_groups(tensor):
        return tensor.transpose(0, 1).unflatten(1, (-1, group)).sum(2)

    bounds = [
        o_error.transpose(0, 1),
        (score_error @ k.abs() * scale).transpose(0, 1) + d_q.abs(),
        sum_of_groups(score_error.mT @ q.abs() * scale) + d_k.abs(),
        sum_of_groups(weights.mT @ d_o.abs()) + d_v.abs(),
    ]
    smallest = 2.0**-24  # float16 rounds below its normal numbers by 2^-25
    return [1.5 * roundoff * bound + smallest for bound in bounds]


class EveryDevice:
    """What holds on the CPU and on a GPU: on `self.device`."""

    def check_narrow_type(self, dtype, mask, **shapes):
        """Output and gradients against float64 attention over the same numbers: each error within its bound, and all
        together within two roundings, as they do not all have one sign."""
        inputs = random_inputs(mask, device=self.device, dtype=dtype, **shapes)
        o = block_attention(*inputs, mask)
        self.assertEqual(o.dtype, dtype)
        d_o = torch.randn_like(o)
        results = [o, *torch.autograd.grad(o, inputs, d_o)]

        visible = mask.dense().to(self.device)
        exact_inputs = [t.detach().double().requires_grad_() for t in inputs]
        exact_o = sdpa(*exact_inputs, visible)
        exact_gradients = torch.autograd.grad(exact_o, exact_inputs, d_o.double())
        roundoff = torch.finfo(dtype).eps / 2
        with torch.no_grad():
            bounds = error_bounds(*exact_inputs, visible, d_o.double(), exact_gradients, roundoff)
            exact_results = [exact_o, *exact_gradients]
            for name, result, exact, bound in zip(["o", "d_q", "d_k", "d_v"], results, exact_results, bounds):
                error = result.double() - exact
                worst = (error.abs() / bound).max().item()
                self.assertLessEqual(worst, 1, f"{name}: an error is {worst:.2f} of its bound")
                relative = (error.norm() / exact.norm()).item()
                self.assertLessEqual(relative, 2 * roundoff, f"{name}: the errors' norm is {relative:.1e} of its own")

    def test_16_bit_types(self):
        for dtype in [torch.bfloat16, torch.float16]:
            for name, mask in {
                    "causal": BlockMask.causal(200),
                    "blocks": BlockMask.blocks([150, 31, 0, 64, 97], sink_tokens=4, sink_visibility="all"),
                    "dropout": BlockMask.dropout([150, 31, 64, 97], keep_probability=0.5, seed=5),
            }.items():
                for shapes in [{"head_dim": 64}, {"head_dim": 128, "kv_heads": 4}, {"head_dim": 24, "value_dim": 40}]:
                    with self.subTest(dtype=dtype, mask=name, **shapes):
                        self.check_narrow_type(dtype, mask, **shapes)

    def test_float32(self):
        mask = BlockMask.blocks([150, 31, 0, 64, 97])
        inputs = random_inputs(mask, head_dim=64, value_dim=32, device=self.device, dtype=torch.float32)
        o = block_attention(*inputs, mask)
        exact_inputs = [t.detach().double().requires_grad_() for t in inputs]
        exact_o = sdpa(*exact_inputs, mask.dense().to(self.device))
        results = [o, *torch.autograd.grad(o.square().sum(), inputs)]
        exact = [exact_o, *torch.autograd.grad(exact_o.square().sum(), exact_inputs)]
        for result, truth in zip(results, exact):  # float32 rounds by 6e-8, a product of TF32 parts by up to 5e-7
            torch.testing.assert_close(result.double(), truth, rtol=0, atol=2e-6 * truth.abs().max().item())

    def test_options_and_lse(self):
        """Softcap, sink logits, and a loss on lse, whose rounding is that of o."""
        mask = BlockMask.blocks([60, 40, 30])
        options = {"scale": 0.2, "softcap": 3.0}
        inputs = random_inputs(mask, head_dim=64, device=self.device, dtype=torch.bfloat16)
        sinks = torch.randn(4, device=self.device, requires_grad=True)
        o, lse = block_attention(*inputs, mask, sink_logits=sinks, return_lse=True, **options)
        self.assertEqual(lse.dtype, torch.float32)
        weights = torch.randn_like(lse)
        results = torch.autograd.grad(o.float().square().sum() + (weights * lse).sum(), [*inputs, sinks])

        exact_inputs = [t.detach().double().requires_grad_() for t in [*inputs, sinks]]
        exact_o, exact_lse = dense_attention(
            *exact_inputs[:3], mask.dense().to(self.device), sink_logits=exact_inputs[3], **options)
        exact = torch.autograd.grad(exact_o.square().sum() + (weights * exact_lse).sum(), exact_inputs)
        torch.testing.assert_close(lse.double(), exact_lse, rtol=0, atol=1e-5)
        roundoff = torch.finfo(torch.bfloat16).eps / 2
        for name, result, truth in zip(["o", "d_q", "d_k", "d_v", "d_sinks"], [o, *results], [exact_o, *exact]):
            error = (result - truth).norm() / truth.norm()
            self.assertLessEqual(error.item(), 2 * roundoff, f"{name}: relative error {error:.1e}")

    def test_autocast(self):
        """Under autocast tensors of several types are cast to its type, as torch's own attention does it."""
        mask = BlockMask.blocks([20, 30, 14])
        q, k, v = random_inputs(mask, head_dim=16, device=self.device)
        narrow = [t.detach().bfloat16().requires_grad_() for t in [q, k, v]]
        expected = block_attention(*narrow, mask)
        with torch.autocast(self.device, dtype=torch.bfloat16):
            o = block_attention(q, k, narrow[2], mask)
        self.assertEqual(o.dtype, torch.bfloat16)
        self.assertTrue(torch.equal(o, expected))
        gradients = torch.autograd.grad(o.float().square().sum(), [q, k, narrow[2]])
        self.assertEqual([g.dtype for g in gradients], [torch.float32, torch.float32, torch.bfloat16])
        for gradient, truth in zip(gradients, torch.autograd.grad(expected.float().square().sum(), narrow)):
            # The same numbers, rounded to bfloat16 on the way; on CUDA sums of d_q come in any order.
            torch.testing.assert_close(gradient.bfloat16(), truth, rtol=2**-7, atol=1e-3)
        with self.assertRaisesRegex(ValueError, "v is BFloat16, must be Float as q is Float"):
            block_attention(q, k, narrow[2], mask)

    def test_strides(self):
        """Views are read in place, and give the bits that copies give."""
        self.ask_for_same_bits()
        mask = BlockMask.blocks([20, 30, 14])
        options = {"device": self.device, "dtype": torch.bfloat16}
        packed = torch.randn(mask.tokens, 4 + 2 + 2, 16, **options)
        by_head = torch.randn(4, mask.tokens, 16, **options)
        columns = torch.randn(mask.tokens, 16, 4, **options)
        for name, tensors in {
                "packed": packed.split([4, 2, 2], dim=1),
                "head-major": [by_head.transpose(0, 1)] * 3,
                "one kv head for all": [packed[:, :4], *[packed[:, 4:5].expand(-1, 4, -1)] * 2],
                "last dimension not contiguous": [columns.mT] * 3,
                "every second token": [torch.randn(2 * mask.tokens, 2, 16, **options)[::2]] * 3,
        }.items():
            with self.subTest(name):
                views = [t.detach().requires_grad_() for t in tensors]
                copies = [t.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for t in tensors]
                results = []
                for inputs in [views, copies]:
                    o = block_attention(*inputs, mask)
                    results.append([o, *torch.autograd.grad(o.sum(), inputs)])
                for of_views, of_copies in zip(*results):
                    self.assertTrue(torch.equal(of_views, of_copies))

    def test_rows_that_see_nothing(self):
        mask = BlockMask.dropout([16, 16, 16], keep_probability=0, seed=4, rule="random_final")
        sees = mask.dense().any(dim=1).to(self.device)
        self.assertFalse(sees.all())
        inputs = random_inputs(mask, device=self.device, dtype=torch.bfloat16)
        o, lse = block_attention(*inputs, mask, return_lse=True)
        self.assertTrue((o[~sees] == 0).all() and (lse[~sees] == -torch.inf).all() and lse[sees].isfinite().all())
        for gradient in torch.autograd.grad(o.sum() + lse[sees].sum(), inputs):
            self.assertTrue((gradient[~sees] == 0).all() and gradient.isfinite().all())
        self.assertFalse((mask.loss_tokens.to(self.device) & ~sees).any())

    def ask_for_same_bits(self):
        self.addCleanup(torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled())
        torch.use_deterministic_algorithms(True)

    def test_same_bits(self):
        self.ask_for_same_bits()
        mask = BlockMask.blocks([90, 60, 33])

        def run():
            inputs = random_inputs(mask, head_dim=64, device=self.device, dtype=torch.bfloat16)
            o = block_attention(*inputs, mask)
            return [o, *torch.autograd.grad(o.square().sum(), inputs)]

        first = run()
        for again in [run() for _ in range(3)]:
            self.assertTrue(all(torch.equal(a, b) for a, b in zip(first, again)))

    def test_training(self):
        """A layer learns its targets, under another draw of block dropout at each step."""
        torch.manual_seed(2)
        lengths, width, heads = [40, 32, 24], 64, 4
        x, target = (torch.randn(sum(lengths), width, device=self.device) for _ in range(2))
        parameters = [torch.randn(width, n, device=self.device) / width**0.5 for n in [3 * width, width]]
        optimizer = torch.optim.Adam([p.requires_grad_() for p in parameters], lr=0.02)
        losses = []
        for step in range(60):
            mask = BlockMask.dropout(lengths, keep_probability=0.7, seed=step, exempt_final_block=True)
            q, k, v = (x @ parameters[0]).to(torch.bfloat16).unflatten(1, (3 * heads, -1)).chunk(3, dim=1)
            loss = mse_loss(block_attention(q, k, v, mask).flatten(1).float() @ parameters[1], target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        self.assertLess(losses[-1], 0.5 * losses[0])


class CpuTest(EveryDevice, unittest.TestCase):
    device = "cpu"

    def test_gradients_by_differences(self):
        for mask_name, make in MASKS.items():
            for option_name, options in OPTIONS.items():
                with self.subTest(mask=mask_name, options=option_name):
                    mask = make()
                    inputs = random_inputs(mask, dtype=torch.float64)
                    if "sink_logits" in options:
                        inputs.append(torch.randn(4, dtype=torch.float64, requires_grad=True))

                    def call(q, k, v, sinks=None):
                        return block_attention(q, k, v, mask, **{**options, "sink_logits": sinks})

                    fast = mask_name not in ["blocks", "dropout"]  # one direction instead of all
                    self.assertTrue(torch.autograd.gradcheck(call, inputs, fast_mode=fast))

    def test_equals_sdpa(self):
        for name, make in MASKS.items():
            with self.subTest(name):
                mask = make()
                inputs = random_inputs(mask, dtype=torch.float64)
                expected = sdpa(*inputs, mask.dense())
                torch.testing.assert_close(block_attention(*inputs, mask), expected, rtol=1e-13, atol=1e-13)

    def test_threads(self):
        mask = BlockMask.blocks([300, 200, 100])
        results = []
        self.addCleanup(torch.set_num_threads, torch.get_num_threads())
        for count in [1, 2, 3]:
            torch.set_num_threads(count)
            inputs = random_inputs(mask, head_dim=64)
            o = block_attention(*inputs, mask)
            results.append([o, *torch.autograd.grad(o.sum(), inputs)])
        for other in results[1:]:
            self.assertTrue(all(torch.equal(a, b) for a, b in zip(results[0], other)))

    def test_sink_tokens(self):
        mask = BlockMask.blocks([2, 1], sink_tokens=1)
        self.assertEqual(mask.tokens, 5)
        self.assertEqual(mask.sources.tolist(), [-1, 0, 1, -1, 2])
        self.assertIsNone(mask.loss_tokens)
        picture = ["".join(".x"[seen] for seen in row) for row in mask.dense().tolist()]
        self.assertEqual(picture, ["x....", "xx...", "xxx..", "xxxx.", "xxxxx"])

    def test_refusals(self):
        mask = BlockMask.causal(4)
        q = torch.zeros(4, 2, 8)
        for sentence, call in {
                "k is Double, must be Float": lambda: block_attention(q, q.double(), q, mask),
                "q, k and v are Int": lambda: block_attention(*[q.int()] * 3, mask),
                "q has 4 dimensions, must have 3": lambda: block_attention(q[None], q, q, mask),
                "plan 0 is for 4 queries x 4 keys, the arguments have 3 x 4": lambda: block_attention(q[:3], q, q, mask),
                "q has 2 heads, not a multiple": lambda: block_attention(q, *[torch.zeros(4, 3, 8)] * 2, mask),
                "head_dim is 6": lambda: block_attention(*[q[..., :6]] * 3, mask),
                "3 sink_logits for 2": lambda: block_attention(q, q, q, mask, sink_logits=torch.zeros(3)),
                "softcap": lambda: block_attention(q, q, q, mask, softcap=-1.0),
                "meta": lambda: block_attention(*[q.to("meta")] * 3, mask),
                "rule is none, must be one of hide_pairs":
                    lambda: BlockMask.dropout([4], keep_probability=1, seed=1, rule="none"),
                "keep_probability is 2": lambda: BlockMask.dropout([4], keep_probability=2, seed=1),
                r"lengths\[1\] is -1": lambda: BlockMask.blocks([4, -1]),
        }.items():
            with self.subTest(sentence), self.assertRaisesRegex(ValueError, sentence):
                call()


@unittest.skipUnless(torch.cuda.is_available(), "needs a CUDA device")
class CudaTest(EveryDevice, unittest.TestCase):
    device = "cuda"

    def test_refuses_other_types(self):
        mask = BlockMask.causal(4)
        with self.assertRaisesRegex(ValueError, "must be bfloat16, float16 or float32"):
            block_attention(*[torch.zeros(4, 2, 8, device="cuda", dtype=torch.float64)] * 3, mask)
        with self.assertRaisesRegex(ValueError, "k is on cpu but q is on cuda"):
            q = torch.zeros(4, 2, 8, device="cuda", dtype=torch.bfloat16)
            block_attention(q, q.cpu(), q, mask)

    def test_streams(self):
        """One mask on two streams, gone before the device is done."""
        self.ask_for_same_bits()
        mask = BlockMask.blocks([700, 500, 300])
        inputs = random_inputs(mask, head_dim=64, device="cuda", dtype=torch.bfloat16)
        expected = block_attention(*inputs, mask)
        expected_gradients = torch.autograd.grad(expected.float().square().sum(), inputs)
        torch.cuda.synchronize()
        for _ in range(3):
            mask = BlockMask.blocks([700, 500, 300])
            results = []
            for stream in [torch.cuda.Stream() for _ in range(2)]:
                with torch.cuda.stream(stream):
                    o = block_attention(*inputs, mask)
                    results.append([o, *torch.autograd.grad(o.float().square().sum(), inputs)])
            del mask
            gc.collect()
            torch.cuda.synchronize()
            for result in results:
                self.assertTrue(all(torch.equal(a, b) for a, b in zip(result, [expected, *expected_gradients])))


if __name__ == "__main__":
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    print(f"torch {torch.__version__}, {device}")
    torch.set_num_threads(1)  # more wait for one another by spinning: ten times as long where cores are busy
    unittest.main(verbosity=2)
