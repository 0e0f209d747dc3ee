#include "cuda/gemm.h"
