/* The engine's inner loops in plain C, for every other processor. */
#include "forward.h"

void run_step_portable(void *step, int thread) { run_step(step, thread); }
void run_product_portable(void *product, int thread) { run_product(product, thread); }
