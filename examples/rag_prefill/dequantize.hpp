// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

#include "gguf.hpp"

namespace rag {

/// Unpacks a tensor to fp32, row-major. `values` has rows * columns elements.
///   Q8_0: value = scale * q, q in [-128, 127], one fp16 scale for 32 values
///   Q4_1: value = scale * q + minimum, q in [0, 15], both fp16, for 32 values;
///         byte j holds value j in its low half and value j + 16 in its high half
void dequantize(const gguf_tensor& tensor, std::span<float> values);

}  // namespace rag
