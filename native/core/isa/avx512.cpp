#include "../simd/avx512.h"
#include "../kernels.inc.h"
