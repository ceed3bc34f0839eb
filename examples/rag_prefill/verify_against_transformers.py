#!/usr/bin/env python3
# Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
"""Compares the engine of rag_prefill with independent implementations on the same GGUF file.

Tokens:  Hugging Face `tokenizers`, built from the vocabulary and merges in the file.
Logits:  `transformers` LlamaForCausalLM in fp32 on the weights that `gguf` unpacks.

    verify_against_transformers.py MODEL ENGINE_PROBE TEXT_FILE...

needs the packages torch, transformers, tokenizers, gguf and numpy. Prints the figures and exits
with 1 unless all tokens agree, the logits of a 512-token prompt differ by at most 1e-3, and 64
greedily generated tokens are equal. Without text files only the tokens are compared.
"""

import random
import subprocess
import sys
import tempfile
import unicodedata

import gguf
import numpy
import tokenizers
import torch
import transformers

PROMPT_TOKENS = 512
GENERATED_TOKENS = 64
LOGIT_BOUND = 1e-3


def strings(reader, key):
    field = reader.fields[key]
    return [bytes(field.parts[i]).decode() for i in field.data]


def number(reader, key):
    return reader.fields[key].parts[-1][0].item()


def reference_tokenizer(reader):
    vocabulary = {entry: i for i, entry in enumerate(strings(reader, "tokenizer.ggml.tokens"))}
    merges = [tuple(merge.split(" ")) for merge in strings(reader, "tokenizer.ggml.merges")]
    result = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges))
    result.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
        tokenizers.pre_tokenizers.Digits(individual_digits=True),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ])
    return result


def hostile_texts(seed, count):
    """Contractions, runs of white space, digits of many scripts, marks, symbols and emoji."""
    draw = random.Random(seed)
    alphabet = list("abcXYZ  '  \n\t\r1290.,!?-_srtvmld") + list(
        "éß日½Ⅷ٣ﬁ𝒳ـˠ😀’\u00a0\u2003\u0301\u0085\u000b\u200d\u3000\u0488")
    texts = ["I'm you're we'll they've he'd it's CAN'T 's 'S x'll", "  a  b   ", "12345 ½ Ⅷ ² ٣٤ 五"]
    for _ in range(count):
        texts.append("".join(draw.choice(alphabet) for _ in range(draw.randint(1, 40))))
        codes = [draw.choice([draw.randrange(32, 0x3000), draw.randrange(0xA000, 0xD7FF),
                              draw.randrange(0x10000, 0x1FFFF)]) for _ in range(20)]
        assigned = [chr(code) for code in codes if unicodedata.category(chr(code)) != "Cn"]
        texts.append("".join(assigned) or "x")
    return texts


def compare_tokens(reader, probe, model_path, texts):
    expected = reference_tokenizer(reader)
    run = subprocess.run([probe, model_path, "tokenize"], input="\0".join(texts).encode(),
                         stdout=subprocess.PIPE, check=True)
    lines = run.stdout.decode().splitlines()
    wrong = [text for text, line in zip(texts, lines)
             if [int(i) for i in line.split()] != expected.encode(text).ids]
    total = sum(len(line.split()) for line in lines)
    print(f"tokens: {len(texts)} texts, {total} tokens, {len(wrong)} texts differ")
    for text in wrong[:5]:
        print(f"  {text[:60]!r}")
    return not wrong and len(lines) == len(texts)


def transformers_name(name):
    """The state-dict entry of a GGUF tensor."""
    fixed = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    if name in fixed:
        return fixed[name]
    _, layer, part, _ = name.split(".")
    parts = {
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    return f"model.layers.{layer}.{parts[part]}.weight"


def half_split_rows(weights, heads):
    """GGUF permutes the rows of q and k for interleaved pairs; transformers rotates halves."""
    rows, columns = weights.shape
    return weights.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def reference_model(reader):
    heads = number(reader, "llama.attention.head_count")
    kv_heads = number(reader, "llama.attention.head_count_kv")
    config = transformers.LlamaConfig(
        vocab_size=len(strings(reader, "tokenizer.ggml.tokens")),
        hidden_size=number(reader, "llama.embedding_length"),
        intermediate_size=number(reader, "llama.feed_forward_length"),
        num_hidden_layers=number(reader, "llama.block_count"),
        num_attention_heads=heads, num_key_value_heads=kv_heads,
        max_position_embeddings=number(reader, "llama.context_length"),
        rms_norm_eps=number(reader, "llama.attention.layer_norm_rms_epsilon"),
        rope_theta=number(reader, "llama.rope.freq_base"), tie_word_embeddings=True)
    weights = {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
        if ".attn_q." in tensor.name:
            values = half_split_rows(values, heads)
        elif ".attn_k." in tensor.name:
            values = half_split_rows(values, kv_heads)
        weights[transformers_name(tensor.name)] = torch.from_numpy(numpy.ascontiguousarray(values))
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model = transformers.LlamaForCausalLM(config).float().eval()
    model.load_state_dict(weights, strict=True)
    return model


def compare_logits(reader, probe, model_path, prompt):
    with tempfile.TemporaryDirectory() as folder:
        with open(f"{folder}/tokens", "w") as file:
            file.write(" ".join(map(str, prompt)))
        run = subprocess.run(
            [probe, model_path, "logits", file.name, str(GENERATED_TOKENS), f"{folder}/logits"],
            stdout=subprocess.PIPE, check=True)
        ours = numpy.fromfile(f"{folder}/logits", numpy.float32).reshape(len(prompt), -1)
    generated = [int(i) for i in run.stdout.split()]

    model = reference_model(reader)
    with torch.no_grad():
        result = model(torch.tensor([prompt]), use_cache=True)
        theirs = result.logits[0].numpy()
        expected = []
        for _ in range(GENERATED_TOKENS):
            expected.append(int(result.logits[0, -1].argmax()))
            result = model(torch.tensor([expected[-1:]]), past_key_values=result.past_key_values,
                           use_cache=True)
    difference = numpy.abs(ours - theirs).max()
    equal = sum(a == b for a, b in zip(generated, expected))
    print(f"logits: {len(prompt)} tokens, max |difference| {difference:.2e} "
          f"(bound {LOGIT_BOUND:.0e}, largest |logit| {numpy.abs(theirs).max():.1f})")
    print(f"greedy: {equal} of {GENERATED_TOKENS} tokens equal")
    # A NaN compares as false.
    return bool(difference <= LOGIT_BOUND) and equal == GENERATED_TOKENS


def main():
    model_path, probe, *text_paths = sys.argv[1:]
    reader = gguf.GGUFReader(model_path)
    documents = []
    for path in text_paths:
        with open(path, encoding="utf-8") as file:
            documents.append(file.read())
    passed = compare_tokens(reader, probe, model_path, documents + hostile_texts(1, 3000))
    if documents:
        prompt = reference_tokenizer(reader).encode("\n".join(documents)).ids[:PROMPT_TOKENS]
        passed = compare_logits(reader, probe, model_path, prompt) and passed
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
