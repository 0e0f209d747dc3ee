#include <algorithm>

#include "core/backend.h"
#include "core/error.h"
#include "core/tensor.h"
#include "core/workspace.h"
#include "core/workspace_size.h"
#include "cpu/parallel.h"
#include "cpu/vector_math.h"

namespace rfn::cpu {
namespace {

constexpr int64_t kForwardTokens = 128;  // per item
constexpr int64_t kColumns = 128;        // of a table's gradient per item: its sums stay in first-level cache
constexpr int64_t kGroupTokens = 64;     // at least, per item of a gradient
constexpr int64_t kPartTokens =
    128;  // summed by themselves before they join the rest: the error grows with n / 128 + 128, not n

struct Shape {
  int64_t batch, length, tokens, width, vocabulary;
  Philox word_random, position_random;
};

Shape shape_of(const rfn_embedding& op) {
  const int64_t batch = op.ids.shape[0], length = op.ids.shape[1];
  return {batch,
          length,
          batch * length,
          op.word.shape[1],
          op.word.shape[0],
          philox(op.seed, op.step, -1, RFN_SITE_WORD_EMBEDDING),
          philox(op.seed, op.step, -1, RFN_SITE_POSITION_EMBEDDING)};
}

// One position table. Position p reads row p / inner % rows and writes columns [column, column + width).
struct Axis {
  int64_t rows, width, column, inner;
};

int32_t axes_of(const rfn_embedding& op, Axis (&axes)[4]) {
  const int32_t count = op.positions == RFN_POSITIONS_NONE ? 0 : op.positions == RFN_POSITIONS_LEARNED ? 1 : op.axes;
  int64_t column = 0, inner = 1;
  for (int32_t i = 0; i < count; ++i) {
    axes[i] = {op.position[i].shape[0], op.position[i].shape[1], column, 0};
    column += axes[i].width;
  }
  for (int32_t i = count; i-- > 0;) {
    axes[i].inner = inner;
    inner *= axes[i].rows;
  }
  return count;
}

rfn_status check_ids(const rfn_embedding& op, const Shape& s) {
  const int32_t* const ids = i32(op.ids);
  for (int64_t i = 0; i < s.tokens; ++i) {
    if (ids[i] < 0 || ids[i] >= s.vocabulary) {
      return fail(RFN_INVALID_ARGUMENT, "embedding: ids[%lld,%lld]: expected 0 .. %lld, got %d",
                  static_cast<long long>(i / s.length), static_cast<long long>(i % s.length),
                  static_cast<long long>(s.vocabulary - 1), ids[i]);
    }
  }
  return RFN_OK;
}

struct ForwardBuffers {
  float* position;     // [threads, E]
  RangeCheck* checks;  // [items], exact residuals
};

ForwardBuffers forward_buffers(Arena& arena, const rfn_embedding& op, const Shape& s, int32_t threads) {
  return {arena.take<float>(threads * s.width),
          arena.take<RangeCheck>(op.residual == RFN_RESIDUAL_EXACT ? div_up(s.tokens, kForwardTokens) : 0)};
}

// Tokens by id. A stable counting sort, so that the tokens of an id come in order.
struct BackwardBuffers {
  int64_t* begin;   // [V + 1]: where an id's tokens begin in order
  int64_t* order;   // [tokens]
  int64_t* groups;  // [tokens / kGroupTokens + 2]: ids at which items of at least kGroupTokens tokens begin
};

BackwardBuffers backward_buffers(Arena& arena, const Shape& s) {
  return {arena.take<int64_t>(s.vocabulary + 1), arena.take<int64_t>(s.tokens),
          arena.take<int64_t>(s.tokens / kGroupTokens + 2)};
}

// Returns the number of groups.
int64_t sort_tokens(const rfn_embedding& op, const Shape& s, const BackwardBuffers& b) {
  const int32_t* const ids = i32(op.ids);
  std::fill_n(b.begin, s.vocabulary + 1, int64_t{0});
  for (int64_t i = 0; i < s.tokens; ++i) ++b.begin[ids[i] + 1];
  for (int64_t id = 0; id < s.vocabulary; ++id) b.begin[id + 1] += b.begin[id];
  for (int64_t i = 0; i < s.tokens; ++i) b.order[b.begin[ids[i]]++] = i;
  std::copy_backward(b.begin, b.begin + s.vocabulary,
                     b.begin + s.vocabulary + 1);  // each entry had moved on to its id's end
  b.begin[0] = 0;
  int64_t groups = 0, group_begin = 0;
  b.groups[0] = 0;
  for (int64_t id = 1; id <= s.vocabulary; ++id) {
    if (b.begin[id] - group_begin < kGroupTokens && id < s.vocabulary) continue;
    group_begin = b.begin[id];
    b.groups[++groups] = id;
  }
  return groups;
}

// Sums gradients of at most kColumns columns, tokens in the order in which they come.
class ColumnSum {
 public:
  ColumnSum(const rfn_embedding& op, const Shape& s, const Philox& random, int64_t column, int64_t columns)
      : op_(op), width_(s.width), random_(random), column_(column), columns_(columns) {
    std::fill_n(total_, columns_, 0.0f);
    std::fill_n(part_, columns_, 0.0f);
  }

  void token(int64_t token) {
    const int64_t place = token * width_ + column_;
    float gradient[kColumns];
    std::copy_n(f32(op_.grad_stream1) + place, columns_, gradient);
    if (present(op_.grad_stream2)) add(gradient, f32(op_.grad_stream2) + place, columns_);
    apply_dropout(gradient, columns_, random_, static_cast<uint64_t>(place), op_.dropout);
    add(part_, gradient, columns_);
    if (++tokens_ % kPartTokens == 0) end_part();
  }

  void add_to(float* gradient) {
    end_part();
    add(gradient, total_, columns_);
  }

 private:
  void end_part() {
    add(total_, part_, columns_);
    std::fill_n(part_, columns_, 0.0f);
  }

  const rfn_embedding& op_;
  int64_t width_;
  const Philox& random_;
  int64_t column_, columns_, tokens_ = 0;
  float total_[kColumns], part_[kColumns];
};

void word_gradient(const rfn_embedding& op, const Shape& s, const BackwardBuffers& b, int32_t threads) {
  const int64_t groups = sort_tokens(op, s, b), tiles = div_up(s.width, kColumns);
  parallel_for(threads, groups * tiles, [&](int64_t item, int32_t) {
    const int64_t group = item / tiles, column = item % tiles * kColumns,
                  columns = std::min(kColumns, s.width - column);
    for (int64_t id = b.groups[group]; id < b.groups[group + 1]; ++id) {
      if (b.begin[id] == b.begin[id + 1]) continue;
      ColumnSum sum(op, s, s.word_random, column, columns);
      for (int64_t i = b.begin[id]; i < b.begin[id + 1]; ++i) sum.token(b.order[i]);
      sum.add_to(f32(op.grad_word) + id * s.width + column);
    }
  });
}

// `first`: the axis's position of token 0 of every example.
void position_gradient(const rfn_embedding& op, const Shape& s, const Axis& axis, int64_t first, float* gradient,
                       int32_t threads) {
  const int64_t end = first + s.length, period = axis.inner * axis.rows;
  const int64_t tiles = div_up(axis.width, kColumns),
                item_rows = std::max<int64_t>(1, kGroupTokens * axis.rows / std::max<int64_t>(1, s.tokens));
  parallel_for(threads, div_up(axis.rows, item_rows) * tiles, [&](int64_t item, int32_t) {
    const int64_t column = item % tiles * kColumns, columns = std::min(kColumns, axis.width - column);
    for (int64_t row = item / tiles * item_rows; row < std::min(axis.rows, (item / tiles + 1) * item_rows); ++row) {
      ColumnSum sum(op, s, s.position_random, axis.column + column, columns);
      bool any = false;
      // The row's positions are runs of `inner`, one in every period.
      for (int64_t run = first / period * period + row * axis.inner; run < end; run += period) {
        for (int64_t p = std::max(run, first); p < std::min(run + axis.inner, end); ++p) {
          for (int64_t example = 0; example < s.batch; ++example) sum.token(example * s.length + p - first);
          any = true;
        }
      }
      if (any) sum.add_to(gradient + row * axis.width + column);
    }
  });
}

}  // namespace

rfn_status embedding_workspace(const rfn_context& context, const rfn_embedding& op, int32_t pass, int64_t* bytes) {
  Arena arena;
  const Shape s = shape_of(op);
  if (pass == RFN_PASS_FORWARD) {
    forward_buffers(arena, op, s, context.threads);
  } else {
    backward_buffers(arena, s);
  }
  return workspace_size(arena, "embedding", bytes);
}

rfn_status embedding_forward(rfn_stream& stream, const rfn_embedding& op, void* workspace, int64_t workspace_bytes) {
  const Shape s = shape_of(op);
  RFN_TRY(check_ids(op, s));
  Axis axes[4];
  const int32_t axis_count = axes_of(op, axes);
  const int32_t threads = stream.context->threads;
  Arena arena(workspace, workspace_bytes);
  const ForwardBuffers b = forward_buffers(arena, op, s, threads);
  const int64_t items = div_up(s.tokens, kForwardTokens);
  parallel_for(threads, items, [&](int64_t item, int32_t thread) {
    const int64_t first = item * kForwardTokens, end = std::min(s.tokens, first + kForwardTokens);
    float* const position = b.position + thread * s.width;
    for (int64_t token = first; token < end; ++token) {
      const int64_t place = token * s.width, p = op.first_position + token % s.length;
      float* const e = f32(op.stream1) + place;
      std::copy_n(f32(op.word) + i32(op.ids)[token] * s.width, s.width, e);
      apply_dropout(e, s.width, s.word_random, static_cast<uint64_t>(place), op.dropout);
      if (axis_count == 0) continue;
      for (int32_t i = 0; i < axis_count; ++i) {
        std::copy_n(f32(op.position[i]) + p / axes[i].inner % axes[i].rows * axes[i].width, axes[i].width,
                    position + axes[i].column);
      }
      apply_dropout(position, s.width, s.position_random, static_cast<uint64_t>(place), op.dropout);
      add(e, position, s.width);
    }
    float* const e = f32(op.stream1) + first * s.width;
    const int64_t count = (end - first) * s.width;
    if (op.residual == RFN_RESIDUAL_EXACT) {
      round_to_grid(e, count, op.grid_exponent);
      b.checks[item] = check_range(e, count, op.grid_exponent);
    }
    if (present(op.stream2)) std::copy_n(e, count, f32(op.stream2) + first * s.width);
  });
  rfn_range_report* const report = op.range_report;
  if (op.residual != RFN_RESIDUAL_EXACT || report == nullptr) return RFN_OK;
  for (int64_t item = 0; item < items; ++item) {
    if (b.checks[item].count == 0) continue;
    if (report->count == 0) {
      report->layer = -1;
      report->stream = 1;
      report->index = item * kForwardTokens * s.width + b.checks[item].first;
    }
    report->count += b.checks[item].count;
  }
  return RFN_OK;
}

rfn_status embedding_backward(rfn_stream& stream, const rfn_embedding& op, void* workspace, int64_t workspace_bytes) {
  const Shape s = shape_of(op);
  RFN_TRY(check_ids(op, s));
  Axis axes[4];
  const int32_t axis_count = axes_of(op, axes);
  const int32_t threads = stream.context->threads;
  Arena arena(workspace, workspace_bytes);
  word_gradient(op, s, backward_buffers(arena, s), threads);
  if (op.positions == RFN_POSITIONS_LEARNED) {  // only the rows in use
    position_gradient(op, s, {s.length, s.width, 0, 1}, 0, f32(op.grad_position[0]) + op.first_position * s.width,
                      threads);
    return RFN_OK;
  }
  for (int32_t i = 0; i < axis_count; ++i)
    position_gradient(op, s, axes[i], op.first_position, f32(op.grad_position[i]), threads);
  return RFN_OK;
}

}  // namespace rfn::cpu
