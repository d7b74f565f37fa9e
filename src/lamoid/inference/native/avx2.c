/* The engine's inner loops for processors with AVX2, FMA and F16C (Intel since 2013, AMD since 2015). */
#include "paths.h"
#if defined(KNOWS_AVX2)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#define LAMOID_AVX2
#include "forward.h"

void run_step_avx2(void *step, int thread) { run_step(step, thread); }
void run_product_avx2(void *product, int thread) { run_product(product, thread); }

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
