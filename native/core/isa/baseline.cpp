#include "../simd/baseline.h"
#include "../kernels.inc.h"
