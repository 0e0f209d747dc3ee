// Cached decoding is the CPU's so far: with one row a block's products are all weight reading, which the kernels of
// this backend aren't made for.
#include "core/backend.h"
#include "core/error.h"

namespace rfn::cuda {
namespace {

rfn_status unsupported(const char* op) {
  return fail(RFN_UNSUPPORTED, "%s: the CUDA backend has no cached decoding; run the whole forward pass", op);
}

}  // namespace

rfn_status reversible_block_decode_workspace(const rfn_context&, const rfn_reversible_block_decode&, int32_t,
                                             int64_t*) {
  return unsupported("reversible_block_decode");
}

rfn_status reversible_block_decode_forward(rfn_stream&, const rfn_reversible_block_decode&, void*, int64_t) {
  return unsupported("reversible_block_decode");
}

rfn_status bucket_rings_forward(rfn_stream&, const rfn_bucket_rings&) { return unsupported("bucket_rings"); }

}  // namespace rfn::cuda
