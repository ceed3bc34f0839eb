// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include "report.hpp"

#include <cmath>
#include <cstdio>
#include <limits>

namespace distillation {
namespace {

/// One row of the table: the same quantity of every seed.
struct row {
  std::string name;
  std::vector<double> relative, direct, perplexity, closed, steps, seconds;
};

std::string shown(const std::vector<double>& values, double unit, int decimals) {
  const spread s = spread_of(values);
  char text[64];
  if (!std::isfinite(s.mean)) return "-";
  if (values.size() == 1) {
    std::snprintf(text, sizeof text, "%.*f", decimals, s.mean * unit);
  } else {
    std::snprintf(text, sizeof text, "%.*f ± %.*f", decimals, s.mean * unit, decimals,
                  s.deviation * unit);
  }
  return text;
}

void print_cell(const std::string& text, int width) {
  // "±" takes two bytes and one column.
  const bool wide = text.find("±") != std::string::npos;
  std::printf(" %*s", width + (wide ? 1 : 0), text.c_str());
}

void add(row& target, const score& s) {
  target.relative.push_back(s.relative_accuracy);
  target.direct.push_back(s.direct_accuracy);
  target.perplexity.push_back(s.relative_perplexity);
}

}  // namespace

spread spread_of(const std::vector<double>& values) {
  const auto count = static_cast<double>(values.size());
  spread result;
  for (const double value : values) result.mean += value / count;
  if (values.size() < 2) return result;
  double squares = 0;
  for (const double value : values) squares += (value - result.mean) * (value - result.mean);
  result.deviation = std::sqrt(squares / (count - 1));
  return result;
}

double closed_share(const seed_results& seed, const run_result& run) {
  constexpr double smallest_gap = 0.05;
  const double untrained = seed.untrained.relative_accuracy;
  const double gap = seed.runs.front().held_out.relative_accuracy - untrained;
  if (gap < smallest_gap) return std::numeric_limits<double>::quiet_NaN();
  return (run.held_out.relative_accuracy - untrained) / gap;
}

double steps_to_close(const seed_results& seed, const run_result& run) {
  constexpr double share = 0.9;
  const double untrained = seed.untrained.relative_accuracy;
  const double wanted =
      untrained + share * (seed.runs.front().held_out.relative_accuracy - untrained);
  for (const curve_point& point : run.curve) {
    if (point.relative_accuracy >= wanted) return static_cast<double>(point.step);
  }
  return not_reached;
}

void print_table(const experiment& run) {
  std::vector<row> rows(run.recipes().size() + 1);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    // The untrained student stands behind the teacher.
    const bool untrained = i == 1;
    const std::size_t recipe = i > 1 ? i - 1 : i;
    rows[i].name = untrained ? "block attention, untrained" : run.recipes()[recipe].name;
    for (const seed_results& seed : run.seeds) {
      const run_result& result = seed.runs[recipe];
      add(rows[i], untrained ? seed.untrained : result.held_out);
      rows[i].closed.push_back(untrained ? 0 : closed_share(seed, result));
      rows[i].steps.push_back(untrained || recipe == 0 ? not_reached
                                                       : steps_to_close(seed, result));
      rows[i].seconds.push_back(untrained ? 0 : result.seconds);
    }
  }
  constexpr const char* heads = "%-28s %14s %14s %14s %14s %14s %14s\n";
  std::printf(heads, "", "across blocks", "perplexity", "gap closed", "90 % after", "in one block",
              "training");
  std::printf(heads, "", "% right", "across blocks", "%", "steps", "% right", "seconds");
  for (const row& r : rows) {
    std::printf("%-28s", r.name.c_str());
    print_cell(shown(r.relative, 100, 1), 14);
    print_cell(shown(r.perplexity, 1, 3), 14);
    print_cell(shown(r.closed, 100, 1), 14);
    print_cell(shown(r.steps, 1, 0), 14);
    print_cell(shown(r.direct, 100, 1), 14);
    print_cell(shown(r.seconds, 1, 0), 14);
    std::printf("\n");
  }
  std::printf(
      "\nHeld-out documents, %zu seed%s. Across blocks: answers whose fact needs another block.\n",
      run.seeds.size(), run.seeds.size() == 1 ? "" : "s, mean ± standard deviation");
}

}  // namespace distillation
