// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <unicode/utf8.h>

#include <string_view>

namespace rag {

// ICU's macro narrows int to uint8_t, and takes char for it.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wsign-conversion"

/// The code point at byte `offset`, which moves past it; negative for bytes that are not UTF-8.
/// `text` is shorter than 2 GiB.
inline UChar32 next_code_point(std::string_view text, std::size_t& offset) {
  auto i = static_cast<int>(offset);
  UChar32 code = U_SENTINEL;
  U8_NEXT(text.data(), i, static_cast<int>(text.size()), code);
  offset = static_cast<std::size_t>(i);
  return code;
}

#pragma GCC diagnostic pop

}  // namespace rag
