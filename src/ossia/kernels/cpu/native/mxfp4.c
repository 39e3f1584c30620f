/* MXFP4 to bfloat16 and float32 (OCP Microscaling Formats 1.0): groups of 32 E2M1 codes with one E8M0 scale.
 *
 * A bfloat16 has float32's exponent. Multiplying a code by 2^(s - 127) therefore adds s - 127 to its exponent field, as
 * long as the result stays a normal number. Scale bytes at the ends of the range use float arithmetic instead. The
 * reference is ossia.kernels.reference.mxfp4. Tests compare every code under every scale byte.
 *
 * The library uses neither Python nor torch: its functions take pointers and numbers. OpenMP threads share the loops.
 */
#include "mxfp4.h"

int ossia_mxfp4_level(void) { return best_level(); }

/* Per group: 16 bytes of blocks, 1 of scales, 32 bfloat16 of out. `level` limits the instructions used (for tests). */
void ossia_mxfp4_bf16(const uint8_t *blocks, const uint8_t *scales, uint16_t *out, int64_t groups, int level) {
    const group_bf16 group = chosen(level);
#pragma omp parallel for schedule(dynamic, 1024) if (groups > 4096)
    for (int64_t n = 0; n < groups; n++) {
        if (scales[n] < LOWEST || scales[n] > HIGHEST)
            group_at_the_ends(blocks + 16 * n, scales[n], out + 32 * n);
        else
            group(blocks + 16 * n, scales[n], out + 32 * n);
    }
}

/* The same into float32. Every value of the format is a bfloat16, so it is only widened. */
void ossia_mxfp4_f32(const uint8_t *blocks, const uint8_t *scales, float *out, int64_t groups, int level) {
    const group_bf16 group = chosen(level);
#pragma omp parallel for schedule(dynamic, 1024) if (groups > 4096)
    for (int64_t n = 0; n < groups; n++) {
        uint16_t half[32];
        if (scales[n] < LOWEST || scales[n] > HIGHEST)
            group_at_the_ends(blocks + 16 * n, scales[n], half);
        else
            group(blocks + 16 * n, scales[n], half);
        for (int i = 0; i < 32; i++) out[32 * n + i] = widened(half[i]);
    }
}
