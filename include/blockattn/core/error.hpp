// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <blockattn/core/config.hpp>
#include <charconv>
#include <concepts>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

#if !BLOCKATTN_HAS_EXCEPTIONS
#include <cstdlib>
#ifdef BLOCKATTN_ERROR_HANDLER
/// Chosen by the engine: receives the sentence and must not return.
[[noreturn]] void BLOCKATTN_ERROR_HANDLER(const char* message);
#endif
#endif

namespace blockattn::inline BLOCKATTN_ABI {

/// The one exception of the library: a bad argument or an unsupported combination. `what()` is a
/// sentence that names the function, the argument and the numbers. Nothing has been written when it
/// is thrown.
class error : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

namespace detail {

template <class Part>
void append_part(std::string& text, const Part& part) {
  if constexpr (std::is_same_v<Part, bool>) {
    text += part ? "true" : "false";
  } else if constexpr (std::is_arithmetic_v<Part> && !std::is_same_v<Part, char>) {
    char digits[64];  // the longest double and the longest integer fit
    text.append(digits, std::to_chars(digits, digits + sizeof(digits), part).ptr);
  } else {
    text += part;
  }
}

/// Joins strings and numbers into one sentence; a number is the shortest text that reads back as
/// it.
template <class... Parts>
std::string sentence(const Parts&... parts) {
  std::string text;
  (append_part(text, parts), ...);
  return text;
}

/// Reports a failed check: throws `error`, or without exceptions calls
/// BLOCKATTN_ERROR_HANDLER(message) when the translation unit defines that macro as the name of a
/// global `[[noreturn]]` function. Without either a failed check ends the program with std::abort:
/// engines that compile without exceptions define the handler.
template <class... Parts>
[[noreturn]] void fail([[maybe_unused]] const Parts&... parts) {
#if BLOCKATTN_HAS_EXCEPTIONS
  throw error(sentence(parts...));
#elif defined(BLOCKATTN_ERROR_HANDLER)
  BLOCKATTN_ERROR_HANDLER(sentence(parts...).c_str());
#else
  std::abort();
#endif
}

/// `require(condition, "make_tile_plan: shape.keys is ", n, ", must be positive")`.
template <class... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) fail(parts...);
}

}  // namespace detail
}  // namespace blockattn::inline BLOCKATTN_ABI
