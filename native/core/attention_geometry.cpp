// What attention_window.h knows of options and a length, for callers that plan before they compute.
#include "core/attention_window.h"
#include "core/complete.h"
#include "core/error.h"
#include "core/guard.h"
#include "core/validate.h"

namespace rfn {
namespace {

rfn_status describe(const rfn_attention_options& options, int64_t length, rfn_attention_geometry& geometry) {
  RFN_TRY(validate(options, length));
  const AttentionWindow<> window = attention_window(options, length);
  const double tokens = static_cast<double>(length), rounds = static_cast<double>(window.rounds);
  geometry.prefix_causal = window.prefix_causal() ? 1 : 0;
  geometry.slots = window.slots();
  geometry.keys = window.most_seen();
  geometry.buckets = window.lsh ? bucket_count(options) : 0;
  geometry.rotation_columns = window.lsh ? rotation_columns(options) : 0;
  geometry.bucket_ring = window.lsh ? window.bucket_ring() : 0;
  const double seen = window.full && window.causal ? 0.5 * (tokens + 1) : static_cast<double>(window.most_seen());
  geometry.pairs = rounds * tokens * seen;
  geometry.multiply_adds = 2 * geometry.pairs + rounds * tokens * static_cast<double>(geometry.rotation_columns);
  return RFN_OK;
}

}  // namespace
}  // namespace rfn

rfn_status rfn_attention_describe(const rfn_attention_options* options, int64_t length,
                                  rfn_attention_geometry* geometry) {
  return rfn::guard([&]() -> rfn_status {
    if (options == nullptr)
      return rfn::fail(RFN_INVALID_ARGUMENT, "rfn_attention_describe: options: expected a pointer, got NULL");
    if (geometry == nullptr)
      return rfn::fail(RFN_INVALID_ARGUMENT, "rfn_attention_describe: geometry: expected a pointer, got NULL");
    RFN_TRY(rfn::check_struct_size("rfn_attention_describe: geometry", geometry->struct_size, sizeof(*geometry)));
    return rfn::with_complete("rfn_attention_describe: options", *options,
                              [&](const auto& complete) { return rfn::describe(complete, length, *geometry); });
  });
}
