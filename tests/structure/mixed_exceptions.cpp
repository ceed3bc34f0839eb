// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0

// One program of two units, one with exceptions and one without: each reports the same bad input in
// its own way, because the configuration is part of every symbol's name.

#include <blockattn/blockattn.hpp>
#include <cstdio>
#include <cstdlib>
#include <string_view>

/// Asks the other unit for a layout with a negative length: ends in handle_error below.
void fail_without_exceptions();

/// The other unit's error handler.
[[noreturn]] void handle_error(const char* message) {
  const bool told = std::string_view(message).find("-1") != std::string_view::npos;
  std::printf("handler: %s\n", message);
  std::exit(told ? EXIT_SUCCESS : EXIT_FAILURE);
}

int main() {
  try {
    const blockattn::index_t lengths[] = {-1};
    static_cast<void>(blockattn::block_layout::from_lengths(lengths));
    return EXIT_FAILURE;
  } catch (const blockattn::error& caught) {
    std::printf("exception: %s\n", caught.what());
  }
  fail_without_exceptions();
  return EXIT_FAILURE;
}
