#include "cuda/state.h"
