#include "../simd/avx2.h"
#include "../kernels.inc.h"
