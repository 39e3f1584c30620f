/* Products of a few float32 rows with a matrix in MXFP4: the steps of decoding on processors without bfloat16.
 *
 * out [rows, outputs] = x [rows, inputs] W^T. Each group of weights is decoded once and used at once for all rows, so a
 * step reads four bits per weight instead of thirty-two. The reference is ossia.kernels.reference.product.
 */
#include "mxfp4.h"

enum { ROWS = 8, GROUP = 32 };

/* Eight sums per row, so that the additions of a group do not wait for each other. */
ALWAYS void one_output(const float *x, int64_t rows, int64_t inputs, const uint8_t *blocks,
                              const uint8_t *scales, group_bf16 group, float *totals) {
    float sums[ROWS][8] = {{0}};
    for (int64_t n = 0; n < inputs / GROUP; n++) {
        uint16_t codes[GROUP];
        float weights[GROUP];
        if (scales[n] < LOWEST || scales[n] > HIGHEST)
            group_at_the_ends(blocks + 16 * n, scales[n], codes);
        else
            group(blocks + 16 * n, scales[n], codes);
        for (int i = 0; i < GROUP; i++) weights[i] = widened(codes[i]);
        for (int64_t row = 0; row < rows; row++)
            for (int i = 0; i < GROUP; i += 8)
                for (int lane = 0; lane < 8; lane++)
                    sums[row][lane] += weights[i + lane] * x[row * inputs + n * GROUP + i + lane];
    }
    for (int64_t row = 0; row < rows; row++) {
        totals[row] = 0.0f;
        for (int lane = 0; lane < 8; lane++) totals[row] += sums[row][lane];
    }
}

typedef void (*version)(const float *, int64_t, int64_t, const uint8_t *, const uint8_t *, group_bf16, float *);

static void portable(const float *x, int64_t rows, int64_t inputs, const uint8_t *blocks, const uint8_t *scales,
                     group_bf16 group, float *totals) {
    one_output(x, rows, inputs, blocks, scales, group, totals);
}

#ifdef X86
__attribute__((target("avx2,fma"))) static void avx2(const float *x, int64_t rows, int64_t inputs,
                                                     const uint8_t *blocks, const uint8_t *scales, group_bf16 group,
                                                     float *totals) {
    one_output(x, rows, inputs, blocks, scales, group_avx2, totals);
    (void)group;
}
#else
#define avx2 portable
#endif

/* There are at most 8 rows. `level` limits the instructions used (for tests). */
void ossia_product_few_f32(const float *x, int64_t rows, const uint8_t *blocks, const uint8_t *scales, int64_t outputs,
                   int64_t inputs, float *out, int level) {
    const version one = level >= 1 && best_level() >= 1 ? avx2 : portable;
#pragma omp parallel for schedule(static)
    for (int64_t output = 0; output < outputs; output++) {
        float totals[ROWS];
        one(x, rows, inputs, blocks + output * inputs / 2, scales + output * inputs / GROUP, group_scalar, totals);
        for (int64_t row = 0; row < rows; row++) out[row * outputs + output] = totals[row];
    }
}
