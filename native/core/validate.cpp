// TEMPORARY: the checks are being written.
#include "core/validate.h"

#include "core/error.h"

namespace rfn {
#define RFN_VALIDATE(name) rfn_status validate(const rfn_##name&, int32_t, Call, const Workspace&) { return RFN_OK; }
RFN_OPS_WITH_BACKWARD(RFN_VALIDATE)
RFN_OPS_FORWARD_ONLY(RFN_VALIDATE)
RFN_OPS_WITHOUT_WORKSPACE(RFN_VALIDATE)
#undef RFN_VALIDATE
rfn_status validate_stage(const rfn_attention&, LshStage, const Workspace&) { return RFN_OK; }
int32_t stage_pass(LshStage stage) { return stage >= LshStage::lsh_combine_backward ? RFN_PASS_BACKWARD : RFN_PASS_FORWARD; }
rfn_status validate_workspace(const char*, const Workspace&, int64_t) { return RFN_OK; }
}  // namespace rfn

rfn_status rfn_lsh_automatic_buckets(int32_t, int64_t, int64_t, int64_t, int32_t*, int32_t*) { return rfn::fail(RFN_INTERNAL, "not yet"); }
