/* gpt-oss's gate (SwiGLU, interleaved, clamped) on bfloat16, forward and backward, in one pass over memory each.
 *
 *   gate = min(h[2j], limit), up = clamp(h[2j + 1], -limit, limit), s = sigmoid(alpha * gate)
 *   out[j] = (up + 1) * gate * s
 *
 * Arithmetic is in float32, and results are rounded once. Loops are plain C, which the compiler vectorises for each
 * kind of processor. The reference is ossia.kernels.reference.gate.
 */
#include "mxfp4.h"

/* Round to the nearest bfloat16, ties to even. A NaN stays a NaN. */
ALWAYS uint16_t narrow(float value) {
    uint32_t word;
    memcpy(&word, &value, 4);
    const uint32_t rounded = (word + 0x7FFF + ((word >> 16) & 1)) >> 16;
    return (uint16_t)(value != value ? 0x7FC0 : rounded);
}

/* Return exp(x) to about one unit in the last place of float32: 2^n times a polynomial (Cephes, expf). */
ALWAYS float exponential(float given) {
    float x = given > 88.0f ? 88.0f : given;
    x = x < -87.0f ? -87.0f : x;
    const float shifted = x * 1.44269504088896341f + 12582912.0f; /* 1.5 * 2^23: rounds to a whole number */
    const float n = shifted - 12582912.0f;
    const float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, 4);
    const uint32_t word = (bits - 0x4B400000u + 127u) << 23;
    float power;
    memcpy(&power, &word, 4);
    return given > 88.0f ? INFINITY : p * power;
}

typedef struct {
    float value, by_gate, by_up;
} slope;

ALWAYS slope gated(uint16_t gate_bits, uint16_t up_bits, float alpha, float limit) {
    const float g = widened(gate_bits), u = widened(up_bits);
    const float gate = g > limit ? limit : g;
    float up = u > limit ? limit : u;
    up = up < -limit ? -limit : up;
    const float s = 1.0f / (1.0f + exponential(-alpha * gate));
    const float glu = gate * s;
    /* As in torch's clamp, the gradient is not zero at the limit itself. */
    const float by_gate = g > limit ? 0.0f : (up + 1.0f) * (s + alpha * glu * (1.0f - s));
    const float by_up = u > limit || u < -limit ? 0.0f : glu;
    return (slope){(up + 1.0f) * glu, by_gate, by_up};
}

ALWAYS void gate_row(const uint16_t *restrict h, uint16_t *restrict out, int64_t inner, float alpha, float limit) {
#pragma omp simd
    for (int64_t j = 0; j < inner; j++) out[j] = narrow(gated(h[2 * j], h[2 * j + 1], alpha, limit).value);
}

ALWAYS float backward_row(uint16_t *restrict h, const uint16_t *restrict grad, float factor,
                                 uint16_t *restrict out, int64_t inner, float alpha, float limit) {
    float dot = 0.0f;
#pragma omp simd reduction(+ : dot)
    for (int64_t j = 0; j < inner; j++) {
        const slope at = gated(h[2 * j], h[2 * j + 1], alpha, limit);
        const float change = widened(grad[j]);
        dot += change * at.value;
        out[j] = narrow(at.value);
        h[2 * j] = narrow(factor * change * at.by_gate);
        h[2 * j + 1] = narrow(factor * change * at.by_up);
    }
    return dot;
}

/* The two loops over a row, compiled for each kind of processor. */
#define VERSION(name, attribute)                                                                                       \
    attribute static void gate_##name(const uint16_t *h, uint16_t *out, int64_t inner, float alpha, float limit) {     \
        gate_row(h, out, inner, alpha, limit);                                                                         \
    }                                                                                                                  \
    attribute static float backward_##name(uint16_t *h, const uint16_t *grad, float factor, uint16_t *out,             \
                                           int64_t inner, float alpha, float limit) {                                  \
        return backward_row(h, grad, factor, out, inner, alpha, limit);                                                \
    }
VERSION(portable, )
#ifdef X86
VERSION(avx2, __attribute__((target("avx2,fma"))))
VERSION(avx512, __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512"))))
#else
#define gate_avx2 gate_portable
#define gate_avx512 gate_portable
#define backward_avx2 backward_portable
#define backward_avx512 backward_portable
#endif

/* Write the gate of h [rows, 2 * inner] to out [rows, inner]. `level` limits the instructions used (for tests). */
void ossia_gate_bf16(const uint16_t *h, uint16_t *out, int64_t rows, int64_t inner, float alpha, float limit,
                     int level) {
    void (*const versions[])(const uint16_t *, uint16_t *, int64_t, float, float) = {gate_portable, gate_avx2,
                                                                                      gate_avx512};
    const int best = level < best_level() ? level : best_level();
#pragma omp parallel for schedule(static) if (rows > 4)
    for (int64_t row = 0; row < rows; row++)
        versions[best](h + row * 2 * inner, out + row * inner, inner, alpha, limit);
}

/* Compute the gradient of the sum over j of factors[row] * grad[row, j] * out[row, j].
 *
 * The gradient of h [rows, 2 * inner] overwrites h. out [rows, inner] is computed again. dots[row] is the sum of
 * grad * out without the factor, which is the gradient of the factor. */
void ossia_gate_backward_bf16(uint16_t *h, const uint16_t *grad, const float *factors, uint16_t *out, float *dots,
                              int64_t rows, int64_t inner, float alpha, float limit, int level) {
    float (*const versions[])(uint16_t *, const uint16_t *, float, uint16_t *, int64_t, float, float) = {
        backward_portable, backward_avx2, backward_avx512};
    const int best = level < best_level() ? level : best_level();
#pragma omp parallel for schedule(static) if (rows > 4)
    for (int64_t row = 0; row < rows; row++)
        dots[row] = versions[best](h + row * 2 * inner, grad + row * inner, factors[row], out + row * inner, inner,
                                   alpha, limit);
}
