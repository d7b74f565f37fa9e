/* The engine's inner loops for processors with AVX-VNNI besides AVX2 (Intel since 2021, AMD since 2024). */
#include "paths.h"
#if defined(KNOWS_AVXVNNI)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avxvnni"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,avxvnni")
#endif
#define LAMOID_AVX2
#define LAMOID_VNNI _mm256_dpbusd_avx_epi32
#include "forward.h"

void run_step_avxvnni(void *step, int thread) { run_step(step, thread); }
void run_product_avxvnni(void *product, int thread) { run_product(product, thread); }

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
