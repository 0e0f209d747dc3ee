// Layer norm whose result, or the gradient of it, is BF16 or F16.
#pragma once
#include "cuda/state.h"

namespace rfn::cuda {

rfn_status layer_norm_half_forward(rfn_stream& stream, const rfn_layer_norm& op);
// sums: of take_norm_sums.
rfn_status layer_norm_half_backward(rfn_stream& stream, const rfn_layer_norm& op, float* sums);

}  // namespace rfn::cuda
