#include "../simd/neon.h"
#include "../kernels.inc.h"
