// Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <cstdio>
#include <fstream>
#include <string_view>

#include "input_error.hpp"
#include "report.hpp"

namespace distillation {
namespace {

// Pixels.
constexpr double picture_width = 960;
constexpr double picture_height = 540;
constexpr double left = 80;
constexpr double right = 680;
constexpr double top = 90;
constexpr double bottom = 470;
constexpr double label_distance = 20;

/// Colours of Okabe and Ito, told apart with every kind of colour vision; dashes tell them apart
/// without any colour.
struct pen {
  std::string_view colour;
  std::string_view dashes;
  double width;
};
constexpr std::array<pen, 5> pens = {{{"#E69F00", "none", 3},
                                      {"#0072B2", "none", 3},
                                      {"#009E73", "7 4", 2},
                                      {"#CC79A7", "2 4", 2},
                                      {"#D55E00", "10 4 2 4", 2}}};

/// A line of the drawing: one recipe, all seeds.
struct line {
  std::string name;
  pen drawn_with;
  std::vector<double> steps, mean, lowest, highest;
};

std::string number(double value, int decimals = 1) {
  char text[32];
  std::snprintf(text, sizeof text, "%.*f", decimals, value);
  return text;
}

line line_of(const experiment& run, std::size_t recipe) {
  std::string name = run.recipes()[recipe].name;
  name.erase(0, name.find_first_not_of(' '));
  line result{std::move(name), pens[recipe - 1], {}, {}, {}, {}};
  const std::size_t points = run.seeds.front().runs[recipe].curve.size();
  for (std::size_t p = 0; p < points; ++p) {
    std::vector<double> values;
    for (const seed_results& seed : run.seeds) {
      values.push_back(seed.runs[recipe].curve[p].relative_accuracy);
    }
    result.steps.push_back(static_cast<double>(run.seeds.front().runs[recipe].curve[p].step));
    result.mean.push_back(spread_of(values).mean);
    result.lowest.push_back(*std::min_element(values.begin(), values.end()));
    result.highest.push_back(*std::max_element(values.begin(), values.end()));
  }
  return result;
}

class drawing {
 public:
  drawing(std::ostream& out, double most_steps) : out_(out), most_steps_(most_steps) {}

  double x(double step) const { return left + (right - left) * step / most_steps_; }
  static double y(double accuracy) { return bottom - (bottom - top) * accuracy; }

  void text(double at_x, double at_y, std::string_view content, std::string_view attributes = "") {
    out_ << "<text x=\"" << number(at_x) << "\" y=\"" << number(at_y) << "\" " << attributes << ">"
         << content << "</text>\n";
  }

  void frame() {
    for (int percent = 0; percent <= 100; percent += 20) {
      const double at = y(percent / 100.0);
      out_ << "<path d=\"M" << number(left) << " " << number(at) << "H" << number(right)
           << "\" stroke=\"#e4e4e4\"/>\n";
      text(left - 10, at + 5, std::to_string(percent) + " %", "text-anchor=\"end\"");
    }
    for (int quarter = 0; quarter <= 4; ++quarter) {
      const double step = most_steps_ * quarter / 4;
      text(x(step), bottom + 24, number(step, 0), "text-anchor=\"middle\"");
    }
    text((left + right) / 2, bottom + 50, "training steps of the student",
         "text-anchor=\"middle\"");
  }

  void level(double accuracy) {
    out_ << "<path d=\"M" << number(left) << " " << number(y(accuracy)) << "H" << number(right)
         << "\" stroke=\"#555555\" stroke-width=\"1.5\" stroke-dasharray=\"4 4\"/>\n";
  }

  void curve(const line& drawn) {
    out_ << "<path d=\"M";
    for (std::size_t p = 0; p < drawn.steps.size(); ++p) point(drawn.steps[p], drawn.highest[p]);
    for (std::size_t p = drawn.steps.size(); p-- > 0;) point(drawn.steps[p], drawn.lowest[p]);
    out_ << "Z\" fill=\"" << drawn.drawn_with.colour << "\" fill-opacity=\"0.13\"/>\n<path d=\"M";
    for (std::size_t p = 0; p < drawn.steps.size(); ++p) point(drawn.steps[p], drawn.mean[p]);
    out_ << "\" fill=\"none\" stroke=\"" << drawn.drawn_with.colour << "\" stroke-width=\""
         << drawn.drawn_with.width << "\" stroke-dasharray=\"" << drawn.drawn_with.dashes
         << "\" stroke-linejoin=\"round\"/>\n";
  }

 private:
  void point(double step, double accuracy) {
    out_ << number(x(step)) << " " << number(y(accuracy)) << " ";
  }

  std::ostream& out_;
  double most_steps_;
};

/// A name beside the end of its line.
struct label {
  double y;
  std::string text;
  pen drawn_with;
};

/// Moves labels down where they would lie on one another, then up from the lower edge.
void spread_out(std::vector<label>& labels) {
  std::stable_sort(labels.begin(), labels.end(),
                   [](const label& a, const label& b) { return a.y < b.y; });
  for (std::size_t i = 1; i < labels.size(); ++i) {
    labels[i].y = std::max(labels[i].y, labels[i - 1].y + label_distance);
  }
  double limit = bottom;
  for (std::size_t i = labels.size(); i-- > 0;) {
    labels[i].y = std::min(labels[i].y, limit);
    limit = labels[i].y - label_distance;
  }
}

}  // namespace

void draw_curves(const experiment& run, const std::string& path) {
  std::vector<double> teachers;
  std::vector<double> untrained;
  for (const seed_results& seed : run.seeds) {
    teachers.push_back(seed.runs.front().held_out.relative_accuracy);
    untrained.push_back(seed.untrained.relative_accuracy);
  }
  std::vector<line> lines;
  for (std::size_t r = 1; r < run.recipes().size(); ++r) lines.push_back(line_of(run, r));

  std::ofstream file(path);
  drawing picture(file, lines.front().steps.back());
  file << "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 " << picture_width << " "
       << picture_height
       << "\" font-family=\"Helvetica, Arial, sans-serif\" font-size=\"15\" fill=\"#222222\">\n"
       << "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n";
  picture.text(left, 38, "Learning to answer from blocks that cannot see one another",
               "font-size=\"21\" font-weight=\"bold\"");
  picture.text(left, 64,
               "right answers about facts that cross a block border; held-out documents, " +
                   std::to_string(run.seeds.size()) +
                   (run.seeds.size() == 1 ? " seed" : " seeds (mean, lowest to highest)"));
  picture.frame();

  constexpr pen level_pen = {"#555555", "4 4", 1.5};
  std::vector<label> labels = {
      {drawing::y(spread_of(teachers).mean), "teacher, full attention", level_pen},
      {drawing::y(spread_of(untrained).mean), "block attention, untrained", level_pen}};
  picture.level(spread_of(teachers).mean);
  picture.level(spread_of(untrained).mean);
  // The two main lines lie on top.
  for (const std::size_t l : {4U, 3U, 2U, 0U, 1U}) picture.curve(lines[l]);
  for (const line& drawn : lines) {
    labels.push_back({drawing::y(drawn.mean.back()), drawn.name, drawn.drawn_with});
  }
  spread_out(labels);
  for (const label& l : labels) {
    file << "<path d=\"M" << number(right + 12) << " " << number(l.y) << "h30\" stroke=\""
         << l.drawn_with.colour << "\" stroke-width=\"" << l.drawn_with.width
         << "\" stroke-dasharray=\"" << l.drawn_with.dashes << "\"/>\n";
    picture.text(right + 50, l.y + 5, l.text);
  }
  file << "</svg>\n";
  file.close();
  require(file.good(), "cannot write the drawing ", path);
}

}  // namespace distillation
