// The checks of every op, made once, at the door. A message names the argument, what was expected and what was found:
//   attention: v: expected F32 [B,T,H,D] = [2,8,4,16], got F32 [2,7,4,16]
#pragma once
#include <cstddef>

#include "core/backend.h"
#include "core/error.h"

namespace rfn {

enum class Call {
  kQuery,  // a workspace query: shapes are checked, data is not looked at
  kRun,
};

// The caller's workspace: no tensor may share memory with it.
struct Workspace {
  void* data = nullptr;
  int64_t bytes = 0;
};

// Options of attention over `length` tokens, without a call.
rfn_status validate(const rfn_attention_options& options, int64_t length);

#define RFN_VALIDATE(name) \
  rfn_status validate(const rfn_##name& op, int32_t pass, Call call, const Workspace& workspace);
RFN_OPS_WITH_BACKWARD(RFN_VALIDATE)
#undef RFN_VALIDATE
#define RFN_VALIDATE(name, pass) rfn_status validate(const rfn_##name& op, Call call, const Workspace& workspace);
RFN_OPS_OF_ONE_PASS(RFN_VALIDATE)
RFN_OPS_WITHOUT_WORKSPACE(RFN_VALIDATE)
#undef RFN_VALIDATE

#define RFN_STAGE(name) name,
enum class LshStage { RFN_LSH_STAGES(RFN_STAGE) };
#undef RFN_STAGE

rfn_status validate_stage(const rfn_attention& op, LshStage stage, const Workspace& workspace);
int32_t stage_pass(LshStage stage);  // the pass of attention whose workspace the stage takes

// Size and alignment of a workspace for an op that needs `needed` bytes.
rfn_status validate_workspace(const char* op, const Workspace& workspace, int64_t needed);

}  // namespace rfn
